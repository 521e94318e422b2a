"""The symbols a person names, by option, variable or file."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigurationError
from common.symbols import read_symbols


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["BTC/USD,ETH/USD,AAPL"], ["BTC/USD", "ETH/USD", "AAPL"]),
        (["AAPL:NASDAQ", "btc/usd"], ["AAPL:NASDAQ", "BTC/USD"]),
        ([" AAPL , MSFT\tIBM\n"], ["AAPL", "MSFT", "IBM"]),
        (["AAPL,aapl", "AAPL,,"], ["AAPL"]),
    ],
    ids=["commas", "repeated", "blanks", "doubles"],
)
def test_symbols_come_in_order_upper_case_and_once(options: list[str], expected: list[str]) -> None:
    assert read_symbols(options, None) == expected


def test_a_file_adds_to_the_options(tmp_path: Path) -> None:
    file = tmp_path / "symbols"
    file.write_text("# stocks\nAAPL, MSFT  # the big ones\n\nbtc/usd\n#IBM\n")
    assert read_symbols(["MSFT"], file) == ["MSFT", "AAPL", "BTC/USD"]


@pytest.mark.parametrize("options", [[], [""], [" , "]])
def test_no_symbols_is_a_wrong_configuration(options: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="no symbols: name some, as in --symbols"):
        read_symbols(options, None)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for file, content in ((tmp_path / "missing", None), (tmp_path / "binary", b"\xff")):
        if content:
            file.write_bytes(content)
        with pytest.raises(ConfigurationError, match=f"--symbols-file .*{file.name}.* cannot be read"):
            read_symbols(["AAPL"], file)
