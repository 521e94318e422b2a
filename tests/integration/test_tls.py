"""TLS to Redis, the database and the vendor. Servers without a trusted certificate are refused."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from trustme import CA

from tests.support.capture import SYMBOLS, Event, make_events, write_capture
from tests.support.faults import FaultySimulator
from tests.support.pipeline import Pipeline
from tests.support.processes import Running
from tests.support.tls import Forwarder, certificate
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig

PASSWORD = "p4ss-of-the-test"


class Secured:
    """A pipeline whose servers have TLS forwarders with certificates for `localhost`."""

    def __init__(self, pipeline: Pipeline, folder: Path, stack: ExitStack) -> None:
        self.pipeline = pipeline
        self.ca, self.stranger = CA(), CA()
        self.ca_file = self._file(folder / "ca.pem", self.ca)
        self.stranger_file = self._file(folder / "stranger.pem", self.stranger)
        self.valkey = pipeline.servers.valkey.url.removeprefix("unix://")
        host = dict(part.split("=") for part in urlsplit(pipeline.servers.postgres.url).query.split("&"))["host"]
        self.socket = f"{host}/.s.PGSQL.5432"
        shown = certificate(self.ca)
        self.redis = stack.enter_context(Forwarder(self.valkey, shown))
        self.database = stack.enter_context(Forwarder(self.socket, shown, postgres=True))
        self._stack = stack
        self.user = f"user-{secrets.token_hex(4)}"
        pipeline.redis.acl_setuser(self.user, enabled=True, passwords=f"+{PASSWORD}", keys="*", commands=["+@all"])
        stack.callback(pipeline.redis.acl_deluser, self.user)

    @staticmethod
    def _file(path: Path, ca: CA) -> Path:
        ca.cert_pem.write_to_path(path)
        return path

    def forward(self, target: str | tuple[str, int], shown: CA | None, host: str = "localhost") -> Forwarder:
        """Add a forwarder. `shown` None: without TLS."""
        return self._stack.enter_context(
            Forwarder(target, certificate(shown, host) if shown else None, postgres=target == self.socket)
        )

    def redis_url(self, port: int | None = None, scheme: str = "rediss", ca_file: Path | str | None = None) -> str:
        query = f"?ssl_ca_certs={ca_file or self.ca_file}" if scheme == "rediss" else ""
        return f"{scheme}://{self.user}:{PASSWORD}@localhost:{port or self.redis.port}/0{query}"

    def database_url(self, port: int | None = None, ca_file: Path | str | None = None) -> str:
        name = urlsplit(self.pipeline.database.url).path
        query = f"?sslmode=verify-full&sslrootcert={ca_file or self.ca_file}"
        return f"postgresql://tickpipe:{PASSWORD}@localhost:{port or self.database.port}{name}{query}"

    @property
    def environ(self) -> dict[str, str]:
        """Environment variables for all commands."""
        return {
            "REDIS_URL": self.redis_url(),
            "DATABASE_URL": self.database_url(),
            "SPOOL_DIR": str(self.pipeline.folder / "spool"),
        }

    def start(self, command: str, *options: str, **environ: str) -> Running:
        """Start a command with TLS unless `environ` overrides it."""
        return self.pipeline.processes.start(command, *options, **self.environ | environ)

    def producer(self, url: str, symbols: Sequence[str] = SYMBOLS, **environ: str) -> Running:
        """Start a producer that trusts the test CA for the websocket."""
        environ = {"SSL_CERT_FILE": str(self.ca_file), **environ}
        return self.start("producer", "--symbols", ",".join(symbols), "--url", url, **environ)


@pytest.fixture
def secured(pipeline: Pipeline, tmp_path: Path) -> Iterator[Secured]:
    with ExitStack() as stack:
        yield Secured(pipeline, tmp_path, stack)


@pytest.fixture
def events() -> list[Event]:
    return make_events(2000)


@pytest.fixture
def simulator(tmp_path: Path, events: list[Event]) -> Iterator[FaultySimulator]:
    with FaultySimulator(SimulatorConfig(capture=write_capture(tmp_path / "capture.ndjson", events), speed=0.0)) as one:
        yield one


def by_wss(secured: Secured, simulator: FaultySimulator, shown: CA | None = None) -> tuple[Forwarder, str]:
    """The TLS address of the simulator."""
    parts = urlsplit(simulator.url)
    forwarder = secured.forward(("127.0.0.1", parts.port or 0), shown or secured.ca)
    return forwarder, f"wss://localhost:{forwarder.port}{parts.path}"


def assert_refused(process: Running, *words: str) -> None:
    """Check for exit status 2, one error line with this text and no secret in the output."""
    assert process.wait() == 2
    (line,) = process.last_log_line()
    assert line.startswith(f"{process.name.partition('-')[2]}: ")
    assert [word for word in words if word not in line] == [], line
    assert_no_secret(process)


def assert_no_secret(process: Running) -> None:
    assert PASSWORD not in process.said()
    assert "key-of-the-test" not in process.said()


def test_pipeline_over_tls_stores_everything(secured: Secured, simulator: FaultySimulator, events: list[Event]) -> None:
    _, url = by_wss(secured, simulator)
    consumer = secured.start("consumer")
    producer = secured.producer(url)
    secured.pipeline.wait_until_stored(len(events))
    status = secured.start("tickpipe", "status")
    assert status.wait() == 0, status.said()
    doctor = secured.start("tickpipe", "doctor")
    assert doctor.wait() == 0, doctor.said()
    assert "ok   Redis answers" in doctor.said()
    assert producer.stop() == 0
    wait_for(secured.pipeline.last_seqs)  # its last report is stored
    assert consumer.stop() == 0
    verify = secured.start("tickpipe", "verify")
    assert verify.wait() == 0, verify.said()
    assert f"complete, {len(events):,} of {len(events):,} stored" in verify.said()
    secured.pipeline.assert_stored_exactly(events)
    for each in (producer, consumer, status, doctor, verify):
        assert_no_secret(each)


ANOTHER_CA = "the server's certificate is not trusted: unable to get local issuer certificate"
WAY_OUT = "REDIS_URL is rediss://HOST:PORT/0?ssl_ca_certs=FILE"


@pytest.mark.parametrize("command", ["producer", "consumer", "status"])
def test_redis_with_another_ca_is_refused(secured: Secured, command: str) -> None:
    url = secured.redis_url(ca_file=secured.stranger_file)
    options = ["--symbols", "BTC/USD"] if command == "producer" else []
    start = [command] if command in {"producer", "consumer"} else ["tickpipe", command]
    assert_refused(secured.start(*start, *options, REDIS_URL=url), f"Redis: {ANOTHER_CA}", WAY_OUT)


def test_redis_with_another_host_name_is_refused(secured: Secured) -> None:
    other = secured.forward(secured.valkey, secured.ca, "elsewhere.test")
    process = secured.start("consumer", REDIS_URL=secured.redis_url(other.port))
    assert_refused(process, "Hostname mismatch, certificate is not valid for 'localhost'", WAY_OUT)


def test_redis_with_an_unknown_ca_is_refused(secured: Secured) -> None:
    """Without a CA file the CAs of the system apply."""
    url = secured.redis_url().partition("?")[0]
    assert_refused(secured.start("consumer", REDIS_URL=url), "certificate is not trusted", WAY_OUT)


@pytest.mark.parametrize(
    ("file", "words"),
    [("nowhere.pem", "a file of certificates cannot be read: No such file"), ("text.pem", "TLS fails:")],
)
def test_redis_ca_file_without_a_certificate_is_reported_immediately(
    secured: Secured, tmp_path: Path, file: str, words: str
) -> None:
    (tmp_path / "text.pem").write_text("no certificate", encoding="utf-8")
    assert_refused(secured.start("consumer", REDIS_URL=secured.redis_url(ca_file=tmp_path / file)), words, WAY_OUT)


@pytest.mark.parametrize("command", ["consumer", "status", "verify"])
def test_database_with_another_ca_is_refused(secured: Secured, command: str) -> None:
    start = [command] if command == "consumer" else ["tickpipe", command]
    process = secured.start(*start, DATABASE_URL=secured.database_url(ca_file=secured.stranger_file))
    assert_refused(process, "the database: ", "certificate verify failed", "sslmode=verify-full&sslrootcert=FILE")


def test_database_with_another_host_name_is_refused(secured: Secured) -> None:
    other = secured.forward(secured.socket, secured.ca, "elsewhere.test")
    process = secured.start("consumer", DATABASE_URL=secured.database_url(other.port))
    assert_refused(process, 'certificate for "elsewhere.test" does not match host name "localhost"', "sslrootcert=FILE")


@pytest.mark.parametrize(
    ("file", "words"), [("nowhere.pem", 'nowhere.pem" does not exist'), ("text.pem", "could not read root certificate")]
)
def test_database_ca_file_without_a_certificate_is_reported(
    secured: Secured, tmp_path: Path, file: str, words: str
) -> None:
    (tmp_path / "text.pem").write_text("no certificate", encoding="utf-8")
    process = secured.start("consumer", DATABASE_URL=secured.database_url(ca_file=tmp_path / file))
    assert_refused(process, words, "sslrootcert=FILE")


def test_database_without_tls_is_refused_if_tls_is_required(secured: Secured) -> None:
    plain = secured.forward(secured.socket, None)
    process = secured.start("consumer", DATABASE_URL=secured.database_url(plain.port))
    assert_refused(process, "server does not support SSL, but SSL was required")


def test_unknown_sslmode_is_refused(secured: Secured) -> None:
    process = secured.start("consumer", DATABASE_URL=secured.database_url().replace("verify-full", "verify-ful"))
    assert_refused(process, 'invalid sslmode value: "verify-ful"', "sslmode=verify-full")


def test_doctor_reports_untrusted_certificates(secured: Secured) -> None:
    urls = {
        "REDIS_URL": secured.redis_url(ca_file=secured.stranger_file),
        "DATABASE_URL": secured.database_url(ca_file=secured.stranger_file),
    }
    doctor = secured.start("tickpipe", "doctor", **urls)
    assert doctor.wait() == 1
    bad = [line for line in doctor.said().splitlines() if line.startswith("BAD")]
    assert any(ANOTHER_CA in line and WAY_OUT in line for line in bad)
    assert any("certificate verify failed" in line and "sslrootcert=FILE" in line for line in bad)
    assert_no_secret(doctor)


def test_plain_url_to_a_tls_port_is_logged_and_retried(secured: Secured) -> None:
    """This looks like a failing Redis, so it is retried. Each log line suggests the other scheme."""
    hint = "if that port takes TLS only, REDIS_URL begins with rediss://"
    url = secured.redis_url(scheme="redis")
    consumer = secured.start("consumer", REDIS_URL=url)
    consumer.wait_until_said(f"{hint}; try 2")
    status = secured.start("tickpipe", "status", REDIS_URL=url)
    assert status.wait() == 1
    assert [hint in line for line in status.last_log_line()] == [True]
    assert consumer.stop() == 1
    assert_no_secret(consumer)
    assert_no_secret(status)


def test_tls_url_to_a_plain_port_is_logged(secured: Secured) -> None:
    plain = secured.forward(secured.valkey, None)
    status = secured.start("tickpipe", "status", REDIS_URL=secured.redis_url(plain.port))
    assert status.wait() == 1
    (line,) = status.last_log_line()
    assert "if that port has no TLS, REDIS_URL begins with redis://" in line
    assert_no_secret(status)


def test_client_certificates_are_accepted(secured: Secured, tmp_path: Path) -> None:
    """Client certificates: the default of Redis (`tls-auth-clients yes`), and PostgreSQL with `clientcert`."""
    secured.redis.shown = secured.database.shown = certificate(secured.ca, clients=secured.ca)
    mine = secured.ca.issue_cert("tickpipe")
    crt, key = tmp_path / "client.crt", tmp_path / "client.key"
    mine.cert_chain_pems[0].write_to_path(crt)
    mine.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    redis_url = f"{secured.redis_url()}&ssl_certfile={crt}&ssl_keyfile={key}"
    database_url = f"{secured.database_url()}&sslcert={crt}&sslkey={key}"
    known = secured.start("tickpipe", "status", REDIS_URL=redis_url, DATABASE_URL=database_url)
    assert known.wait() == 0, known.said()
    assert_refused(secured.start("consumer", REDIS_URL=redis_url), "the database: ", "certificate required")


def test_certificate_that_becomes_invalid_at_runtime_is_an_outage(
    secured: Secured, simulator: FaultySimulator, events: list[Event]
) -> None:
    """After the first connection nothing exits. Each log line has the reason; everything is stored later."""
    feed, url = by_wss(secured, simulator)
    everything = [secured.redis, secured.database, feed]
    simulator.quiet(on=True)
    consumer = secured.start("consumer")
    producer = secured.producer(url)
    consumer.wait_until_said("reads prices in the group")
    producer.wait_until_said("subscribed:")
    good = secured.redis.shown
    for each in everything:
        each.shown = certificate(secured.stranger)
    secured.redis.cut()
    simulator.quiet(on=False)
    producer.wait_until_said("spooling to")
    consumer.wait_until_said(ANOTHER_CA)  # before the next cut: a consumer waits for one server at a time
    secured.database.cut()
    producer.wait_until_said(
        "the server closed the connection (code 1000)"
    )  # the capture has ended, so all events are received
    producer.wait_until_said("producer.feed: the server's certificate is not trusted")
    secured.redis.shown = good
    consumer.wait_until_said("the database: connection to server")  # some entries were read and cannot be stored
    consumer.wait_until_said("certificate verify failed")
    for each in everything:
        each.shown = good
    secured.pipeline.wait_until_stored(len(events))
    assert (consumer.status, producer.status) == (None, None)
    assert producer.stop() == 0
    wait_for(secured.pipeline.last_seqs)  # its last report is stored
    assert consumer.stop() == 0
    verify = secured.start("tickpipe", "verify")
    assert verify.wait() == 0, verify.said()
    assert_no_secret(producer)
    assert_no_secret(consumer)


def test_feed_with_another_ca_is_refused_and_never_receives_the_key(
    secured: Secured, simulator: FaultySimulator
) -> None:
    _, url = by_wss(secured, simulator, secured.stranger)
    process = secured.producer(url)
    assert_refused(process, f"localhost: {ANOTHER_CA}", "set SSL_CERT_FILE to trust your own CA")
    assert simulator.connections == 0


def test_feed_url_with_the_wrong_scheme_is_logged_at_each_attempt(secured: Secured, simulator: FaultySimulator) -> None:
    """Both look like a failing server and are retried."""
    forwarder, _ = by_wss(secured, simulator)
    plain = secured.producer(f"ws://localhost:{forwarder.port}")
    by_tls = secured.producer(simulator.url.replace("ws://", "wss://"))
    by_tls.wait_until_said("if that port has no TLS, its address begins with ws://; next try in")
    plain.wait_until_said("if that port takes TLS only, its address begins with wss://; next try in")
    assert simulator.connections == 0
