"""Which errors of TLS need a person, and which are a connection that was lost."""

from __future__ import annotations

import ssl

import pytest

from common import tls


@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
        ssl.SSLZeroReturnError(6, "TLS/SSL connection has been closed"),
        ssl.SSLSyscallError(5, "Some I/O error occurred"),
        TimeoutError("The handshake operation timed out"),
        ConnectionResetError(104, "Connection reset by peer"),
        ValueError(),
        None,
    ],
)
def test_a_connection_that_is_lost_is_no_refusal(error: BaseException | None) -> None:
    assert tls.refusal(error) is None


@pytest.mark.parametrize(
    ("error", "by_tls", "expected"),
    [
        (ssl.SSLEOFError(8, "EOF"), True, True),
        (TimeoutError(), True, True),
        (TimeoutError(), False, False),  # a Redis that is slow
        (ConnectionResetError(), False, True),
        (ConnectionResetError(), True, False),
        (ConnectionRefusedError(), False, False),  # nobody listens: no word on TLS
        (ConnectionRefusedError(), True, False),
    ],
)
def test_the_scheme_is_doubted_only_where_it_may_be_that(error: OSError, by_tls: bool, expected: bool) -> None:
    assert tls.may_be_the_scheme(error, by_tls=by_tls) is expected
