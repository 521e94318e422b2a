"""Encodes records as the flat fields of a stream entry, and decodes them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Generic, TypeVar

from common.errors import DecodeError

R = TypeVar("R", bound=tuple[str, ...])


class Codec(Generic[R]):
    """Encodes and decodes one kind of record: a NamedTuple whose fields are all text."""

    def __init__(self, kind: str, make: Callable[..., R], names: tuple[str, ...], optional: int = 0) -> None:
        """`optional`: how many of the last fields an entry has only if one of them is not empty."""
        self._kind = kind
        self._make = make
        self._names = names
        self._keys = [name.encode() for name in names]
        self._required = len(names) - optional
        self._absent = [part for key in self._keys[self._required :] for part in (key, b"")]

    def encode(self, record: R) -> dict[str, str]:
        """The record as the fields of a stream entry, in its order: all fields, or all but the optional ones."""
        count = len(self._names) if any(record[self._required :]) else self._required
        return dict(zip(self._names, record[:count], strict=False))

    def columns(self, entries: Sequence[Sequence[bytes]]) -> list[Sequence[bytes]]:
        """The values of many entries as columns, one for each field; empty columns if no entry has optional fields.

        Fast path: it works on whole columns. Raises DecodeError unless every entry has the record's names in its order.
        """
        if len(set(map(len, entries))) > 1:
            entries = [self._padded(entry) for entry in entries]
        names = self._keys[: self._required] if entries and self._lacks_optional(entries[0]) else self._keys
        flat, step = list(chain.from_iterable(entries)), 2 * len(names)
        if set(map(len, entries)) - {step} or any(
            flat[2 * n :: step].count(name) != len(entries) for n, name in enumerate(names)
        ):
            raise DecodeError(f"an entry among {len(entries)} has fields that are not those of a {self._kind}", {})
        columns: list[Sequence[bytes]] = [flat[2 * n + 1 :: step] for n in range(len(names))]
        return columns + [[]] * (len(self._keys) - len(names))

    def _lacks_optional(self, entry: Sequence[bytes]) -> bool:
        return len(entry) == 2 * self._required

    def _padded(self, entry: Sequence[bytes]) -> Sequence[bytes]:
        """The entry with empty values for optional fields that it does not have."""
        return [*entry, *self._absent] if self._lacks_optional(entry) else entry

    def values(self, parts: Sequence[bytes]) -> Sequence[bytes]:
        """The values of one entry, in the record's order. Fields are found by name.

        Raises DecodeError unless the entry has each of the record's names exactly once.
        """
        padded = self._padded(parts)
        if padded[::2] == self._keys:
            return padded[1::2]
        if sorted(padded[::2]) == sorted(self._keys):
            by_name = dict(zip(padded[::2], padded[1::2], strict=True))
            return [by_name[key] for key in self._keys]
        found = ", ".join(name.decode(errors="backslashreplace") for name in parts[::2]) or "none"
        fields = dict(zip(parts[::2], parts[1::2], strict=True))
        raise DecodeError(f"its fields are not those of a {self._kind}: {found[:200]}", fields)

    def decode(self, fields: Mapping[bytes, bytes]) -> R:
        """The record in a stream entry.

        Raises DecodeError for other names than the record's, invalid UTF-8, and NUL, which PostgreSQL text cannot have.
        """
        values = self.values([part for pair in fields.items() for part in pair])
        try:
            record = self._make(*[value.decode() for value in values])
        except UnicodeDecodeError as error:
            raise DecodeError(f"not UTF-8: {error.object[:80]!r}", fields) from error
        for key, value in zip(self._keys, values, strict=True):
            if b"\0" in value:
                raise DecodeError(f"{key.decode()} holds a NUL character: {value[:80]!r}", fields)
        return record
