"""How a record of named texts becomes the flat fields of a stream entry, and back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Generic, TypeVar

from common.errors import DecodeError

R = TypeVar("R", bound=tuple[str, ...])


class Codec(Generic[R]):
    """Encodes and decodes one kind of record: a NamedTuple whose fields are all text."""

    def __init__(self, kind: str, make: Callable[..., R], names: tuple[str, ...]) -> None:
        self._kind = kind
        self._make = make
        self._names = names
        self._keys = [name.encode() for name in names]

    def encode(self, record: R) -> dict[str, str]:
        """The record as the fields of a stream entry, always all of them and in the same order."""
        return dict(zip(self._names, record, strict=True))

    def columns(self, entries: Sequence[Sequence[bytes]]) -> list[Sequence[bytes]]:
        """The values of many entries, a column a field, where every entry has the contract's names in its order.

        Nothing is done entry by entry: this is the way of nearly every block. Raises DecodeError where one is odd.
        """
        names, flat = self._keys, list(chain.from_iterable(entries))
        step = 2 * len(names)
        if set(map(len, entries)) - {step} or any(
            flat[2 * n :: step].count(name) != len(entries) for n, name in enumerate(names)
        ):
            raise DecodeError(f"an entry among {len(entries)} has fields that are not those of a {self._kind}", {})
        return [flat[2 * n + 1 :: step] for n in range(len(names))]

    def values(self, parts: Sequence[bytes]) -> Sequence[bytes]:
        """The values in an entry's names and values, in the contract's order: by name, never by position.

        Raises DecodeError for names that are not the contract's, each once.
        """
        if parts[::2] == self._keys:
            return parts[1::2]
        fields = dict(zip(parts[::2], parts[1::2], strict=True))
        if sorted(parts[::2]) == sorted(self._keys):
            return [fields[key] for key in self._keys]
        found = ", ".join(name.decode(errors="backslashreplace") for name in parts[::2]) or "none"
        raise DecodeError(f"its fields are not those of a {self._kind}: {found[:200]}", fields)

    def decode(self, fields: Mapping[bytes, bytes]) -> R:
        """The record in a stream entry.

        Raises DecodeError for names that are not the contract's, bytes that are not UTF-8, and NUL, which no
        PostgreSQL text can hold.
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
