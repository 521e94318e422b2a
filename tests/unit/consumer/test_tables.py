"""Array literals and invalid URLs, without a database."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.database.client import DatabaseClient
from common.errors import ConfigurationError
from common.settings import Secret
from consumer.tables import array_literal


def parse_array(literal: str) -> list[str | None]:
    """A one-dimensional array as PostgreSQL reads it (its manual, "Array Input and Output Syntax")."""
    assert literal[0] == "{"
    assert literal[-1] == "}"
    values: list[str | None] = []
    rest = literal[1:-1]
    while rest:
        value = ""
        if rest[0] == '"':
            position = 1
            while rest[position] != '"':
                position += rest[position] == "\\"  # the next one as it is
                value += rest[position]
                position += 1
            values.append(value)
            rest = rest[position + 1 :]
        else:
            value = rest.partition(",")[0]
            assert value == "NULL"  # the only unquoted value
            values.append(None)
            rest = rest[len(value) :]
        assert rest == "" or (rest[0] == "," and len(rest) > 1)
        rest = rest[1:]
    return values


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
@example(["plain", "", "text"])
@example(["", "NULL", "null", "{}", ",", '"', "\\", '\\"', " ", "\n\t", "'", "%s", "€😀"])
def test_array_literals_round_trip_and_empty_is_null(values: list[str]) -> None:
    literal = array_literal([value.encode() for value in values])
    assert parse_array(literal) == [value or None for value in values]


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "mysql://user:p4ss@host/db",
        "postgresql://user:p4ss/word@host/db",  # libpq takes p4ss for the port, and would quote it
        "postgresql://user:p4%zz@host/db",
        "postgresql://user:p4ss@host:0/db",
        "postgresql://user:p4ss@host:99999/db",
        "postgresql://user:p4ss@host/db?nonsense=1",
        "host=h port=p4ss",
    ],
)
def test_an_invalid_url_is_rejected_at_once_and_not_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL is not a PostgreSQL URL") as caught:
        DatabaseClient(Secret(url))
    assert "p4" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://localhost:5432/tickpipe",
        "postgres://user:p4ss@one,two:5433/db?sslmode=require",
        "postgresql:///db?host=/run/postgresql",
        "host=h dbname=d",
        "",
    ],
)
def test_a_valid_url_does_not_connect_yet(url: str) -> None:
    DatabaseClient(Secret(url)).close()
