"""How a number is written in a stream entry."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.number import DECIMAL_BYTES, INTEGER_BYTES, has_only, is_bigint, is_finite


@pytest.mark.parametrize("text", ["0", "-0", "7", "-7", "007", "0" * 5000 + "7", str(2**63 - 1), str(-(2**63))])
def test_integers(text: str) -> None:
    assert is_bigint(text)
    assert has_only(INTEGER_BYTES, [text.encode()])


@pytest.mark.parametrize(
    "text",
    ["", "-", "+5", "--5", "5-", "1_000", " 12", "12\n", "0x1A", "0b1", "0o7", "1.0", "1e3", "٣", "１２", str(2**63),
     str(-(2**63) - 1), "9" * 5000],
)  # fmt: skip
def test_texts_that_are_not_integers(text: str) -> None:
    assert not is_bigint(text)


@pytest.mark.parametrize("text", ["0", "-0.0", "+5", "007", "1.", ".5", "1e3", "1E+3", "-1.5e-3", "1e-400", "9" * 300])
def test_decimal_numbers(text: str) -> None:
    assert is_finite(text)
    assert has_only(DECIMAL_BYTES, [text.encode()])


@pytest.mark.parametrize(
    "text",
    ["", ".", "-", "1e", "e3", "1e400", "-1e400", "infinity", "inf", "nan", "1_000", " 12 ", "12\n", "0x1A", "0x1p3",
     "1,5", "٣", "１２", "1.5.5", "1e1.5", "+-5"],
)  # fmt: skip
def test_texts_that_are_not_decimal_numbers(text: str) -> None:
    assert not is_finite(text)


@given(st.integers(-(2**64), 2**64), st.floats())
def test_numbers_as_python_writes_them(whole: int, number: float) -> None:
    assert is_bigint(str(whole)) == (-(2**63) <= whole < 2**63)
    assert is_finite(repr(number)) == math.isfinite(number)


@given(st.lists(st.text("0123456789+-.eE_x \u0663", max_size=6)))
@example(["1", "", "0x1"])
def test_bytes_are_looked_at_in_all_values(texts: list[str]) -> None:
    values = [text.encode() for text in texts]
    assert has_only(DECIMAL_BYTES, values) == all(set(value) <= set(DECIMAL_BYTES) for value in values)
