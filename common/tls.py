"""What TLS refuses, as against a connection that is lost."""

from __future__ import annotations

import ssl

#: Said of a server that goes away in the middle of it, too.
_LOST = (ssl.SSLEOFError, ssl.SSLSyscallError, ssl.SSLZeroReturnError)


def refusal(error: BaseException | None) -> str | None:
    """Why TLS cannot come about until somebody mends it; None where the error says no such thing."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted: {error.verify_message.rstrip('.')}"
    if not isinstance(error, ssl.SSLError) or isinstance(error, _LOST):
        return None
    if error.reason == "WRONG_VERSION_NUMBER":
        return "the server speaks no TLS on that port"
    return f"TLS fails: {error.reason or error}"


def may_be_the_scheme(error: BaseException | None, *, by_tls: bool) -> bool:
    """Whether this may be the other end's answer to TLS where it has none, or to none where it wants it."""
    if by_tls:
        return isinstance(error, ssl.SSLEOFError | TimeoutError)
    return isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError)


def hint(name: str, plain: str, secure: str, *, by_tls: bool) -> str:
    """The way out of it."""
    if by_tls:
        return f"; if that port has no TLS, {name} begins with {plain}://"
    return f"; if that port takes TLS only, {name} begins with {secure}://"
