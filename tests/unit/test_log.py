"""One line a record, in UTC, on stderr; secrets never show, whoever logs them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

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


def test_secrets_show_nowhere_not_even_in_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_level_holds(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("WARNING")
    logging.getLogger("producer").info("not told")
    logging.getLogger("websocket").error("said better by the feed")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("level", ["", "LOUD", "10", "CRITICAL"])
def test_a_level_that_is_none_is_refused(level: str) -> None:
    with pytest.raises(ConfigurationError, match=f"LOG_LEVEL '{level}' is none of DEBUG, INFO, WARNING, ERROR"):
        log.configure(level)
