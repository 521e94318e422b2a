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
        self._optional = optional
        self._required = names[: len(names) - optional]
        self._kind = kind
        self._make = make
        self._names = names
        self._keys = [name.encode() for name in names]

    def encode(self, record: R) -> dict[str, str]:
        """The record as the fields of a stream entry, in its order: all fields, or all but the optional ones."""
        if self._optional and not any(record[-self._optional :]):
            return dict(zip(self._required, record, strict=False))
        return dict(zip(self._names, record, strict=True))

    def columns(self, entries: Sequence[Sequence[bytes]]) -> list[Sequence[bytes]]:
        """The values of many entries as columns, one for each field; empty columns if no entry has optional fields.

        Fast path: it works on whole columns. Raises DecodeError unless every entry has the record's names in its order.
        """
        if len(set(map(len, entries))) > 1:
            entries = [self._padded(entry) for entry in entries]
        all_names = not entries or len(entries[0]) > 2 * len(self._required)
        names, flat = self._keys[: None if all_names else len(self._required)], list(chain.from_iterable(entries))
        step = 2 * len(names)
        if set(map(len, entries)) - {step} or any(
            flat[2 * n :: step].count(name) != len(entries) for n, name in enumerate(names)
        ):
            raise DecodeError(f"an entry among {len(entries)} has fields that are not those of a {self._kind}", {})
        columns: list[Sequence[bytes]] = [flat[2 * n + 1 :: step] for n in range(len(names))]
        return columns + [[]] * (len(self._keys) - len(names))

    def _padded(self, entry: Sequence[bytes]) -> Sequence[bytes]:
        """The entry with empty values for optional fields that it does not have."""
        if len(entry) != 2 * len(self._required):
            return entry
        return [*entry, *chain.from_iterable((key, b"") for key in self._keys[len(self._required) :])]

    def values(self, parts: Sequence[bytes]) -> Sequence[bytes]:
        """The values of one entry, in the record's order. Fields are found by name.

        Raises DecodeError unless the entry has each of the record's names exactly once.
        """
        padded = self._padded(parts)
        if padded[::2] == self._keys:
            return padded[1::2]
        fields = dict(zip(padded[::2], padded[1::2], strict=True))
        if sorted(padded[::2]) == sorted(self._keys):
            return [fields[key] for key in self._keys]
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
