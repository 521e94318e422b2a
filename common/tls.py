"""Tells errors of TLS from lost connections, and suggests the right URL scheme."""

from __future__ import annotations

import ssl

#: Errors that a lost connection causes, too.
_LOST = (ssl.SSLEOFError, ssl.SSLSyscallError, ssl.SSLZeroReturnError)


def refusal(error: BaseException | None) -> str | None:
    """Why TLS cannot work until a person acts; None for other errors."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted: {error.verify_message.rstrip('.')}"
    if not isinstance(error, ssl.SSLError) or isinstance(error, _LOST):
        return None
    if error.reason == "WRONG_VERSION_NUMBER":
        return "the server does not use TLS on that port"
    return f"TLS fails: {error.reason or error}"


def may_be_the_scheme(error: BaseException | None, *, by_tls: bool) -> bool:
    """Whether the URL's scheme may be wrong: TLS to a port without it, or no TLS to a port that requires it."""
    if by_tls:
        return isinstance(error, ssl.SSLEOFError | TimeoutError)
    return isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError)


def hint(name: str, plain: str, secure: str, *, by_tls: bool) -> str:
    """What to do then: the end of an error message."""
    if by_tls:
        return f"; if that port has no TLS, {name} begins with {plain}://"
    return f"; if that port takes TLS only, {name} begins with {secure}://"
