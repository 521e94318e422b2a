"""Translates the errors of redis-py into those of common.errors, and checks the user's rights on a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import redis
from redis.exceptions import MovedError, NoPermissionError

from common import rights, tls
from common.errors import ConfigurationError, StreamOutageError, TickpipeError, UntrustedError
from common.streams.client import NOT_PRIMARY, expect_primary, is_cluster, look_up_again

#: The error of a transaction if the user may not send MULTI: redis-py reports the last error.
_NO_MULTI = "EXEC without MULTI"


class ErrorTranslator:
    """Translates the errors of one client.

    After each error it closes the client's unused connections, so that the next attempt looks up the address in
    REDIS_URL again: after a failover the old node still answers.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._tls = issubclass(client.connection_pool.connection_class, redis.SSLConnection)
        self._answered: set[str] = set()  # the keys for which a command has succeeded at least once

    @contextmanager
    def translated(self, key: str) -> Iterator[None]:
        """Translate the errors of commands on this key.

        Raises StreamOutageError if a retry can help, ConfigurationError if a person must act.
        """
        try:
            yield
            self._answered.add(key)
        except redis.RedisError as error:
            look_up_again(self._redis)
            raise self._translate(error, key) from error

    def check_key(self, key: str, kind: str, commands: rights.Commands) -> bool:
        """Return whether the key exists, after a check of its type and of the right to send these commands.

        Raises ConfigurationError if the key has another type, or if the user lacks a right.
        """
        commands = {**rights.look(key), **commands}
        with self.translated(key), self._redis.pipeline(transaction=False) as pipe:
            expect_primary(self._redis)
            for command in commands.values():
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            replies = dict(zip(commands, pipe.execute(raise_on_error=False), strict=True))
            refused = {right: reply for right, reply in replies.items() if _is_refused(reply)}
            # All commands but TYPE have invalid arguments: their other errors are expected.
            if not refused and isinstance(replies["type"], redis.RedisError):
                raise replies["type"]
        if refused:
            raise ConfigurationError(
                f"Redis refuses {', '.join(refused)} on the key {key!r}: {next(iter(refused.values()))}. Grant it to "
                f"the user in REDIS_URL: ACL SETUSER USER ~{key} {' '.join(f'+{right}' for right in refused)}"
            )
        found = cast("bytes", replies["type"]).decode()
        if found not in {kind, "none"}:
            raise ConfigurationError(
                f"the key {key!r} in this Redis is a {found}, not a {kind}: rename or delete it, or choose another "
                "--price-stream"
            )
        return found == kind

    def _translate(self, error: redis.RedisError, key: str) -> TickpipeError:
        """A TLS or cluster error needs a person if no command has ever succeeded. Later, the server may recover."""
        if isinstance(error, redis.AuthenticationError):
            return ConfigurationError(f"Redis refuses the login in REDIS_URL: {error}")
        if isinstance(error, NoPermissionError) or str(error) == _NO_MULTI:
            return ConfigurationError(f"Redis refuses a right on the key {key!r}: {error}. Grant it by ACL SETUSER")
        if isinstance(error, MovedError) and key not in self._answered and not is_cluster(self._redis):
            return ConfigurationError(
                f"REDIS_URL names one node of a Redis Cluster, and the key {key!r} is on another node: MOVED {error}. "
                "Write redis+cluster://HOST:PORT"
            )
        if refusal := self._tls_refusal(error):
            message = (
                f"Redis: {refusal}; REDIS_URL is rediss://HOST:PORT/0?ssl_ca_certs=FILE, with the host that the "
                "certificate was made for, and the file of the CA that signed it"
            )
            return StreamOutageError(message) if self._answered else UntrustedError(message)
        return StreamOutageError(self._outage_message(error, key))

    def _tls_refusal(self, error: redis.RedisError) -> str | None:
        cause = error.__context__
        if self._tls and isinstance(cause, FileNotFoundError | PermissionError | IsADirectoryError):
            return f"a file of certificates cannot be read: {cause.strerror}"
        return tls.refusal(cause)

    def _outage_message(self, error: redis.RedisError, key: str) -> str:
        cause, message = error.__context__, f"Redis: {str(error) or type(error).__name__}"
        if not self._answered and (tls.may_be_the_scheme(cause, by_tls=self._tls) or "closed by server" in message):
            return message + tls.hint("REDIS_URL", "redis", "rediss", by_tls=self._tls)
        if isinstance(error, redis.ConnectionError | redis.TimeoutError):
            return f"{message} (REDIS_URL)"
        if isinstance(error, NOT_PRIMARY):
            return f"{message}; this node is not the primary: the next try looks up the address in REDIS_URL again"
        if "WRONGTYPE" in message:
            return f"Redis: the key {key!r} has another type than it should: rename or delete it"
        return message


def _is_refused(reply: object) -> bool:
    """Whether the user may not send this command, or the server does not know it."""
    return isinstance(reply, NoPermissionError) or (
        isinstance(reply, redis.ResponseError) and str(reply).startswith("unknown command")
    )
