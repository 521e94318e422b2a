"""Price events for the simulator to replay, and the rows that they become."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from common.tick import Tick
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

Event = dict[str, Any]
#: symbol, time, price, day_volume, bid, ask, exchange
Row = tuple[str, datetime, float, float | None, float | None, float | None, str | None]

STOCKS = {"AAPL": "NASDAQ", "MSFT": "NASDAQ", "SHOP": "TSX"}
COINS = {"BTC/USD": "Coinbase Pro", "ETH/USD": "Coinbase Pro", "DOT/USD": "Kraken"}
PAIRS = ("EUR/USD", "USD/JPY")
SYMBOLS = [*STOCKS, *COINS, *PAIRS]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def make_events(count: int, seed: int = 1) -> list[Event]:
    """Price events of Twelve Data's three shapes, several per second, with numbers of every length and sign."""
    rng = random.Random(seed)
    return [_event(rng, 1_760_000_000 + number // 7) for number in range(count)]


def _event(rng: random.Random, timestamp: int) -> Event:
    symbol = rng.choice(SYMBOLS)
    price = _number(rng)
    event: Event = {"event": "price", "symbol": symbol, "timestamp": timestamp, "price": price}
    if symbol in STOCKS:
        event |= {"type": "Common Stock", "currency": "USD", "exchange": STOCKS[symbol], "mic_code": "XNGS"}
        event |= {"day_volume": rng.randrange(10**10)}
    elif symbol in COINS:
        event |= {"type": "Digital Currency", "exchange": COINS[symbol]}
        event |= {"currency_base": symbol[:3], "currency_quote": "US Dollar"}
        event |= {"bid": price - 0.01, "ask": price + 0.01, "day_volume": rng.uniform(0, 1e6)}
    else:
        event |= {"type": "Physical Currency", "currency_base": "Euro", "currency_quote": "US Dollar"}
        event |= {"bid": _number(rng), "ask": _number(rng)}
    return event


def _number(rng: random.Random) -> float | int:
    """A number with 2 or 17 digits, whole, tiny or huge, and sometimes negative (as oil in April 2020)."""
    value = rng.choice(
        [rng.uniform(0, 1e5), round(rng.uniform(0, 1e5), 2), rng.randrange(10**6), rng.random() * 1e-9, 1e22 / 3]
    )
    return -value if rng.random() < 0.05 else value


def write_capture(path: Path, events: Sequence[Event], *, seconds: float = 0.0) -> Path:
    """Write a capture of these events, spread evenly over `seconds`."""
    with path.open("w", encoding="utf-8") as file:
        for number, event in enumerate(events):
            file.write(json.dumps({"at": seconds * number / len(events), "event": event}) + "\n")
    return path


def read_capture(path: Path) -> list[Event]:
    """The events in a capture."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["event"] for line in file]


def row(event: Event) -> Row:
    """The row of this event."""
    day_volume, bid, ask = (None if event.get(name) is None else float(event[name]) for name in Tick._fields[5:8])
    time = _EPOCH + timedelta(seconds=event["timestamp"])
    return (event["symbol"], time, float(event["price"]), day_volume, bid, ask, event.get("exchange"))


def ticks(events: Sequence[Event], session: int) -> Iterator[Tick]:
    """The ticks of a session that received these events 3 µs apart."""
    for seq, event in enumerate(events, 1):
        named = {**event, "session": session, "seq": seq, "time": event["timestamp"], "received": session + 3 * seq}
        yield Tick._make(str(named.get(name, "")) for name in Tick._fields)


REAL_CAPTURE = Path(__file__).parents[3] / "shared/data/fx-ticks.ndjson"


SESSION = 1_760_000_000_000_000


def replay(path: Path, speed: float = 0.0) -> Simulator:
    return Simulator(SimulatorConfig(capture=path, speed=speed))
