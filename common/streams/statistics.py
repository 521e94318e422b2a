"""The reports that consumers publish: a hash beside the stream, with one JSON object for each consumer."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, cast

import redis

from common import rights
from common.streams.errors import ErrorTranslator
from common.streams.keys import beside
from common.streams.scripts import load_script


class ConsumerStatistics:
    """The reports of all consumers of one stream, in the hash `{<stream>}:consumers`.

    The entry with an empty name is the sum of reports that are older.
    """

    def __init__(self, client: redis.Redis, stream: str, errors: ErrorTranslator) -> None:
        self._key = beside(stream, "consumers")
        self._redis = client
        self._errors = errors
        self._fold = load_script(client, "fold_reports")

    def check(self) -> bool:
        """Return whether there are reports. Raises ConfigurationError for a key of another type or a missing right."""
        return self._errors.check_key(self._key, "hash", rights.report(self._key))

    def publish(self, consumer: str, *, at: int, **values: object) -> None:
        """Replace this consumer's report. `at`: the time now, microseconds UTC."""
        with self._errors.translated(self._key):
            self._redis.hset(self._key, consumer, json.dumps({**values, "at": at}))

    def read(self) -> dict[str, dict[str, Any]]:
        """The last report of each consumer, including those that have ended. A malformed report has `at` 0."""
        with self._errors.translated(self._key):
            found = cast("dict[bytes, bytes]", self._redis.hgetall(self._key))
        return {name.decode(errors="replace"): _parse(text) for name, text in found.items()}

    def prune(self, before: int) -> int:
        """Replace reports that are older than `before`, microseconds UTC, by their sum, which has an empty name.

        A consumer that is scaled up and down has a new name each time. Returns the number of reports replaced.
        """
        with self._errors.translated(self._key):
            return int(cast("Any", self._fold(keys=[self._key], args=[before])))


def _parse(text: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):  # reports are for display only: a malformed one must not stop a reader
        if isinstance(report := json.loads(text), dict) and isinstance(report.get("at"), int):
            return report
    return {"at": 0}
