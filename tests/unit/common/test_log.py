"""The log has one line per record, in UTC, on stderr. Secrets are always masked."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import log
from common.errors import ConfigurationError
from common.settings import Secret

KEY = "s3cr3t-k3y"
URL = "redis://user:p4ss@host:6379/0"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, wrapper = logging.getLogger(), logging.getLogger("websocket")
    before = root.level, root.handlers[:], wrapper.level
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    wrapper.setLevel(before[2])


def test_a_record_is_one_line_on_stderr_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info")
    logging.getLogger("producer").info("connected to %s", "host")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    producer: connected to host\n", err)


def test_secrets_never_appear_even_in_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("DEBUG", [Secret(KEY), Secret(URL)])
    logger = logging.getLogger("anybody")
    logger.warning("key %s, url %s", KEY, URL)
    logger.info(f"{KEY}{KEY}", stack_info=True)  # noqa: G004
    try:
        try:
            raise ValueError(f"GET /price?apikey={KEY}")
        except ValueError as error:
            raise RuntimeError(f"cannot reach {URL}") from error
    except RuntimeError:
        logger.exception("lost %s", KEY)
    err = capsys.readouterr().err
    assert KEY not in err
    assert URL not in err
    assert "p4ss" not in err
    assert "RuntimeError: cannot reach …" in err
    assert "ValueError: GET /price?apikey=…" in err


def test_records_below_the_level_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("WARNING")
    logging.getLogger("producer").info("not told")
    logging.getLogger("websocket").error("said better by the feed")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("level", ["", "LOUD", "10", "CRITICAL"])
def test_unknown_log_level_is_refused(level: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f"LOG_LEVEL '{level}' is unknown: use one of DEBUG, INFO, WARNING, ERROR"
    ):
        log.configure(level)


# --- Short and encoded secrets

#: Each place of a secret in a setting.
PLACES = {
    "key": "{}",
    "password of Redis": "redis://user:{}@host:6379/0",
    "password behind Sentinels": "redis+sentinel://:{}@host,host2/ticks",
    "password of Sentinels": "redis+sentinel://host,host2/ticks?sentinel_password={}",
    "password of PostgreSQL": "postgresql://user:{}@host/db",
    "parameter": "redis://host/0?password={}",
    "name=value": "host=h password={} user=u",
    "quoted": "host=h password='{}' user=u",
}
TEXT = "a reader at aa said: a1=a 'a' :a, /a@a a"


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("secret", ["a", "1", ":", "WARN", "said"])
def test_short_secret_does_not_mask_ordinary_text(capsys: pytest.CaptureFixture[str], place: str, secret: str) -> None:
    log.configure("INFO", [Secret(place.format(secret))])
    warned = capsys.readouterr().err
    assert "WARNING common.log: short secret: " in warned
    assert "has fewer than 6 characters" in warned
    logging.getLogger("producer").warning(TEXT)
    assert re.fullmatch(rf"[-0-9T:.]+Z WARNING producer: {re.escape(TEXT)}\n", capsys.readouterr().err)


@pytest.mark.parametrize("secret", ["zj", "j", "z j", "z%20j", "z'j", "j@"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_short_secret_is_masked_in_urls_and_after_its_name(
    capsys: pytest.CaptureFixture[str], place: str, secret: str
) -> None:
    log.configure("ERROR", [Secret(place.format(secret if place == "{}" else quote(secret, safe="")))])
    said = [
        f"redis://user:{secret}@host",
        f"postgresql://:{quote(secret, safe='')}@host",
        f"GET /price?apikey={quote(secret)}&a",
        repr({"user": "u", "password": secret}), json.dumps({"api_key": secret}), f"password='{quote(secret)}' host=h",
    ]  # fmt: skip
    for text in said:
        logging.getLogger("x").error(text)
        line = capsys.readouterr().err.partition(" x: ")[2]
        assert "…" in line
        assert not re.search("j", line), line
        assert line.startswith(text[:5])


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_six_characters_are_a_long_enough_secret(capsys: pytest.CaptureFixture[str], place: str) -> None:
    log.configure("INFO", [Secret(place.format("zq1234"))])
    assert capsys.readouterr().err == ""


def test_unregistered_keys_and_passwords_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    """A key file can be replaced at runtime."""
    log.configure("INFO")
    logging.getLogger("x").info("wss://host/price?apikey=%s&a=b and redis://u:%s@host", "zq12345", "zq12345")
    assert capsys.readouterr().err.endswith(" x: wss://host/price?apikey=…&a=b and redis://u:…@host\n")


@pytest.mark.parametrize("place", [PLACES["key"], PLACES["password of Redis"], PLACES["parameter"]])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(secret=st.text(st.sampled_from("zq \t\n'\"\\\x1b%@:/#?ä😀") | st.characters(codec="utf-8"), max_size=8).map(
    lambda text: f"zq{text}qz"
))  # fmt: skip
def test_long_secret_is_masked_in_every_encoding(capsys: pytest.CaptureFixture[str], place: str, secret: str) -> None:
    if len(secret) < log.SHORT:
        return
    log.configure("INFO", [Secret(place.format(quote(secret, safe="") if place != "{}" else secret))])
    capsys.readouterr()
    logger = logging.getLogger("x")
    quoted = quote(secret, safe="")
    lower = re.sub("%..", lambda escape: escape[0].lower(), quoted)
    forms = [
        secret, quoted, lower, quote(secret), quote_plus(secret), repr(secret), ascii(secret), repr(secret.encode()),
        json.dumps(secret), json.dumps(secret, ensure_ascii=False),
    ]  # fmt: skip
    for form in forms:
        logger.info("first line\nand %s\nlast line", form, extra={"action": form, "url": secret})
        try:
            raise ValueError(f"one\n{form}\nthree")
        except ValueError:
            logger.exception("failed")
    said = capsys.readouterr().err
    assert said.count("…") >= 2 * len(forms)
    assert "zq" not in said
    assert "qz" not in said
