"""The instruments of the simulator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A real instrument with plausible figures. `base` is empty for shares and ETFs."""

    symbol: str
    type: str
    base: str = ""
    quote: str
    exchange: str = ""
    mic_code: str = ""
    country: str = ""
    price: float
    decimals: int
    volatility: float  # standard deviation over one minute, as a fraction of the price
    turnover: float = 0.0  # volume of a whole day; 0: events have no day_volume


def _share(symbol: str, mic_code: str, price: float, millions: float, kind: str = "Common Stock") -> Listing:
    exchange = {"XNGS": "NASDAQ", "XNMS": "NASDAQ", "XNYS": "NYSE", "ARCX": "NYSE", "XTSE": "TSX"}[mic_code]
    canadian = exchange == "TSX"
    return Listing(
        symbol=symbol, type=kind, quote="CAD" if canadian else "USD", exchange=exchange, mic_code=mic_code,
        country="Canada" if canadian else "United States", price=price, decimals=2, volatility=0.001,
        turnover=millions * 1e6,
    )  # fmt: skip


def _coin(symbol: str, base: str, price: float, decimals: int, turnover: float, exchange: str) -> Listing:
    return Listing(
        symbol=symbol, type="Digital Currency", base=base, quote="US Dollar", exchange=exchange, mic_code=exchange,
        price=price, decimals=decimals, volatility=0.0015, turnover=turnover,
    )  # fmt: skip


def _pair(symbol: str, base: str, quote: str, price: float, decimals: int, volatility: float = 0.0002) -> Listing:
    return Listing(
        symbol=symbol, type="Physical Currency", base=base, quote=quote,
        price=price, decimals=decimals, volatility=volatility,
    )  # fmt: skip


LISTINGS = {
    listing.symbol: listing
    for listing in (
        _share("AAPL", "XNGS", 228.50, 52),
        _share("MSFT", "XNGS", 421.30, 21),
        _share("NVDA", "XNGS", 138.20, 210),
        _share("TSLA", "XNGS", 342.10, 95),
        _share("AMZN", "XNGS", 204.60, 38),
        _share("GOOGL", "XNGS", 175.90, 27),
        _share("META", "XNGS", 561.40, 13),
        _share("AMD", "XNGS", 139.80, 41),
        _share("INTC", "XNGS", 24.35, 68),
        _share("NFLX", "XNGS", 847.20, 3.4),
        _share("COIN", "XNGS", 297.40, 12),
        _share("PLTR", "XNGS", 61.70, 80),
        _share("JPM", "XNYS", 243.10, 8.9),
        _share("BAC", "XNYS", 46.20, 34),
        _share("DIS", "XNYS", 114.30, 9.7),
        _share("KO", "XNYS", 63.10, 14),
        _share("XOM", "XNYS", 119.60, 14),
        _share("IBM", "XNYS", 213.80, 3.9),
        _share("BA", "XNYS", 146.40, 9.2),
        _share("RY", "XTSE", 173.50, 4.1),
        _share("SHOP", "XTSE", 149.20, 2.3),
        _share("SPY", "ARCX", 591.20, 45, "ETF"),
        _share("QQQ", "XNMS", 503.40, 31, "ETF"),
        _share("GLD", "ARCX", 245.30, 7.8, "ETF"),
        _coin("BTC/USD", "Bitcoin", 96_480.00, 2, 9_200, "Coinbase Pro"),
        _coin("ETH/USD", "Ethereum", 3_342.50, 2, 118_000, "Coinbase Pro"),
        _coin("SOL/USD", "Solana", 243.70, 2, 1_450_000, "Coinbase Pro"),
        _coin("XRP/USD", "XRP", 1.4126, 4, 210_000_000, "Coinbase Pro"),
        _coin("ADA/USD", "Cardano", 0.8714, 4, 96_000_000, "Coinbase Pro"),
        _coin("DOGE/USD", "Dogecoin", 0.38912, 5, 640_000_000, "Coinbase Pro"),
        _coin("LTC/USD", "Litecoin", 92.31, 2, 310_000, "Coinbase Pro"),
        _coin("LINK/USD", "Chainlink", 15.204, 3, 2_900_000, "Coinbase Pro"),
        _coin("AVAX/USD", "Avalanche", 36.42, 2, 900_000, "Coinbase Pro"),
        _coin("DOT/USD", "Polkadot", 6.183, 3, 2_100_000, "Kraken"),
        _coin("USDT/USD", "Tether", 1.0004, 4, 150_000_000, "Kraken"),
        _coin("USDC/USD", "USD Coin", 0.9999, 4, 60_000_000, "Kraken"),
        _pair("EUR/USD", "Euro", "US Dollar", 1.05412, 5),
        _pair("GBP/USD", "British Pound", "US Dollar", 1.26134, 5),
        _pair("AUD/USD", "Australian Dollar", "US Dollar", 0.65087, 5),
        _pair("NZD/USD", "New Zealand Dollar", "US Dollar", 0.58611, 5),
        _pair("USD/JPY", "US Dollar", "Japanese Yen", 154.482, 3),
        _pair("USD/CHF", "US Dollar", "Swiss Franc", 0.88642, 5),
        _pair("USD/CAD", "US Dollar", "Canadian Dollar", 1.39753, 5),
        _pair("EUR/GBP", "Euro", "British Pound", 0.83571, 5),
        _pair("EUR/JPY", "Euro", "Japanese Yen", 162.843, 3),
        _pair("EUR/CHF", "Euro", "Swiss Franc", 0.93438, 5),
        _pair("GBP/JPY", "British Pound", "Japanese Yen", 194.855, 3),
        _pair("XAU/USD", "Gold Spot", "US Dollar", 2_669.30, 2, 0.0005),
        _pair("XAG/USD", "Silver Spot", "US Dollar", 30.842, 3, 0.0008),
    )
}

#: For bars of symbols that only a capture has.
UNLISTED = Listing(symbol="", type="", quote="", price=100.0, decimals=2, volatility=0.001)
