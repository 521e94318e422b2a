"""Measures the cost of each step of the batch insert: `python -m benchmarks.insert_steps`.

Each case adds one step to the case before it. COPY of the same rows is the comparison. The cases take turns in several
rounds, with batches of 5000 from memory. The result is the best round in microseconds per row, by the client's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO

import psycopg2
from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so
from psycopg2.extras import execute_values

from benchmarks import ticks
from benchmarks.peers.copy_rows import COPY, line
from benchmarks.servers import DATABASE, bench
from consumer.tables import PRICES, array_literal
from tests.support.folders import temporary_folder

BATCH_SIZE, BATCHES, ROUNDS = 5_000, 40, 5
_INSERT, _, _REST = PRICES.statement.partition("SELECT")
_ROWS = ("SELECT" + _REST).partition("ON CONFLICT")[0]

STATEMENTS = {
    "send and read the arrays": "SELECT array_length(v.session, 1) FROM (VALUES %s) AS v (session)",
    "… and expand them into typed rows": f"SELECT count(made) FROM ({_ROWS} OFFSET 0) AS made",
    "… and store the rows in a table without a primary key": _INSERT.replace("prices_real_time", "keyless") + _ROWS,
    "… and maintain the primary key": _INSERT + _ROWS,
    "… and ON CONFLICT DO NOTHING: the complete insert": PRICES.statement,
}


def main() -> None:
    """Measure and print."""
    batches = [list(ticks.entries(BATCH_SIZE, first)) for first in range(0, BATCH_SIZE * BATCHES, BATCH_SIZE)]
    rows = [
        [{name.encode(): value.encode() for name, value in fields.items()} for fields in batch] for batch in batches
    ]
    literals = [
        [array_literal(column) for column in zip(*(each.values() for each in batch), strict=True)] for batch in rows
    ]
    texts = [b"".join(line(each) for each in batch) for batch in rows]

    def inserting(statement: str) -> Callable[[Cursor, int], None]:
        return lambda cursor, batch: execute_values(cursor, statement, [literals[batch]], template=PRICES.template)

    cases = {name: inserting(statement) for name, statement in STATEMENTS.items()}
    cases["COPY of the same rows"] = lambda cursor, batch: cursor.copy_expert(COPY, BytesIO(texts[batch]))
    best = dict.fromkeys(cases, float("inf"))
    with temporary_folder() as folder, bench(folder) as found:
        found.query(DATABASE, "CREATE TABLE keyless (LIKE prices_real_time INCLUDING CONSTRAINTS)")
        connection = psycopg2.connect(found.database_url(DATABASE))
        for _ in range(ROUNDS):
            for name, case in cases.items():
                found.query(DATABASE, "TRUNCATE prices_real_time, keyless")
                found.settle(DATABASE)
                begun = time.perf_counter()
                for batch in range(BATCHES):
                    with connection, connection.cursor() as cursor:
                        case(cursor, batch)
                best[name] = min(best[name], (time.perf_counter() - begun) / (BATCH_SIZE * BATCHES) * 1e6)
        connection.close()
    for name, cost in best.items():
        print(f"{cost:6.2f} µs/row  {best['COPY of the same rows'] / cost:5.2f} × COPY's rate  {name}")


if __name__ == "__main__":
    main()
