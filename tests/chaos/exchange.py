"""A chaos run of an exchange that misbehaves: `make chaos FEED=coinbase MINUTES=10 SEED=7`.

The simulator drops, repeats and delays trades, and closes each connection after a while. The usual faults hit
processes, servers and connections. `tickpipe backfill` runs during the faults and at the end; with an odd seed, the
producer runs it, too. The oracle is the exchange itself: each trade between the first and the last one in the database
is in it exactly once, with all its digits, whether a producer ran at that time or not.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import psycopg2

from tests.chaos.oracle import Judgement
from tests.chaos.run import Run, chaos
from tests.support.faults import FaultyExchange
from tickpipe.simulator.config import ExchangeConfig
from tickpipe.simulator.trades import Tape, Trade
from tickpipe.simulator.venues import VENUES

#: Trades per second of each symbol. Kraken answers one request a second, and `backfill` begins a minute early.
RATES = {"coinbase": 100.0, "kraken": 10.0, "binance": 100.0}
#: Shares of the trades.
DROP, REPEAT, DELAY = 0.002, 0.005, 0.005
#: Seconds after which the exchange closes a connection.
CLOSE_AFTER = 25.0
#: Seconds between two runs of `backfill` during the faults.
BACKFILL_EVERY = 5.0
SYMBOLS = ("BTC/USD", "ETH/USD", "SOL/USD", "DOGE/USD")
ROWS = """
SELECT trade_id, price::text, size::text, side, (extract(epoch FROM time) * 1000000)::bigint
FROM prices_real_time WHERE symbol = %s ORDER BY trade_id
"""
COUNTS = "SELECT count(*) FILTER (WHERE session > 0), count(*) FILTER (WHERE session = 0) FROM prices_real_time"

DOUBLED = """
SELECT trade_id, session, seq, source, time::text, received_at::text FROM prices_real_time
WHERE symbol = %s AND trade_id IN (
    SELECT trade_id FROM prices_real_time WHERE symbol = %s GROUP BY trade_id HAVING count(*) > 1
) ORDER BY trade_id, session, seq
"""

Row = tuple[int, str, str, str, int]


class ExchangeRun(Run):
    """One run against Coinbase."""

    feed = "coinbase"

    def _make_simulator(self) -> FaultyExchange:
        config = ExchangeConfig(
            feed=self.feed, rate=self.rate, seed=self.seed, drop=DROP, repeat=REPEAT, delay=DELAY,
            close_after=CLOSE_AFTER,
        )  # fmt: skip
        self.exchange = FaultyExchange(config)
        return self.exchange

    def _feed_environ(self) -> dict[str, str]:
        return {
            "FEED": self.feed, "FEED_URL": self.exchange.url, "FEED_REST_URL": self.exchange.rest_url,
            "SYMBOLS": ",".join(self._symbols), "REPAIR": str(self.seed % 2),
        }  # fmt: skip

    @property
    def _symbols(self) -> Sequence[str]:
        return [symbol.replace("/USD", "/USDT") if self.feed == "binance" else symbol for symbol in SYMBOLS]

    def _look_on(self, resting: threading.Event) -> None:
        """Also run `backfill`, while the trades that it requests may be in Redis, in the spool or in a transaction."""
        looking = threading.Thread(target=super()._look_on, args=(resting,))
        looking.start()
        while not resting.wait(BACKFILL_EVERY):
            status, words = self._backfill()
            self.counts["backfills during faults"] += 1
            if status not in {0, 1} or "Traceback" in words:
                self.alarms.append(f"backfill ended with status {status}: {words[-500:]}")
        looking.join()

    def _backfill(self) -> tuple[int, str]:
        command = [str(Path(sys.executable).with_name("tickpipe")), "backfill"]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def _compare(self) -> Judgement:
        self.say("requesting the missing trades")
        status, words = self._backfill()
        self.say(words.strip())
        judgement = Judgement()
        if status:
            judgement.faults.append(f"backfill ended with status {status}: {words[-500:]}")
        with closing(psycopg2.connect(self.postgres.url)) as database, database.cursor() as cursor:
            cursor.execute(COUNTS)
            judgement.stored, judgement.repaired = cursor.fetchone() or (0, 0)
            cursor.execute("SELECT count(*) FROM dead_letters")
            (judgement.dead_letters,) = cursor.fetchone() or (0,)
            for symbol in self._symbols:
                cursor.execute(ROWS, (symbol,))
                rows: list[Row] = cursor.fetchall()
                name = symbol.replace("/", "") if self.feed == "binance" else VENUES[self.feed].spell(symbol)
                judgement.sent += compare(judgement, symbol, rows, self.exchange.tape, name)
                cursor.execute(DOUBLED, (symbol, symbol))
                judgement.faults += [f"DOUBLED {symbol}: {row}" for row in cursor.fetchall()[:20]]
        return judgement


def compare(judgement: Judgement, symbol: str, rows: Sequence[Row], tape: Tape, name: str) -> int:
    """Compare the rows of a symbol with the trades of the exchange. Returns how many it has made."""
    if not rows:
        judgement.faults.append(f"NOTHING STORED of {symbol}")
        return 0
    made = {trade.number: trade for trade in tape.trades(name, rows[0][0], rows[-1][0])}
    missing = sorted(made.keys() - {row[0] for row in rows})
    changed = [row for row in rows if row[0] not in made or not _is_same(row, made[row[0]])]
    for kind, found in (("MISSING", missing), ("CHANGED", changed)):
        if found:
            judgement.faults.append(f"{kind}: {len(found)} trades of {symbol}, {found[:10]}")
    return len(made)


def _is_same(row: Row, trade: Trade) -> bool:
    """Binance sends times in milliseconds."""
    _, price, size, side, at = row
    same = (Decimal(price), Decimal(size), side) == (Decimal(trade.price), Decimal(trade.size), trade.side)
    return same and 0 <= trade.at - at < 1000


def report(judgement: Judgement, counts: Counter[str], seed: int) -> str:
    """A summary of the run."""
    counted = f"{judgement.stored:,} were received, {judgement.repaired:,} requested"
    return "\n".join(
        [
            f"seed {seed}: the exchange made {judgement.sent:,} trades; {counted}",
            f"faults: {', '.join(f'{count} × {fault}' for fault, count in sorted(counts.items()))}",
            *(judgement.faults or ["0 missing, 0 doubled; verify agrees"]),
        ]
    )


def run(feed: str, seed: int, seconds: float, say: Callable[[str], None]) -> tuple[Judgement, Counter[str]]:
    """Run once against this exchange."""
    kind = type("ExchangeRun", (ExchangeRun,), {"feed": feed})
    return chaos(seed, seconds, RATES[feed], say, kind=kind)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--feed", choices=[*VENUES], default="coinbase")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(10**6)
    print(f"seed {seed} (SEED={seed} replays the schedule)", flush=True)
    judgement, counts = run(arguments.feed, seed, arguments.minutes * 60, lambda line: print(line, flush=True))
    print(report(judgement, counts, seed))
    return 1 if judgement.faults else 0


if __name__ == "__main__":
    sys.exit(main())
