"""The commands print external names and messages without terminal control characters."""

from __future__ import annotations

import json
import time
import unicodedata
from contextlib import closing

from common.database.client import DatabaseClient
from common.database.migrations import apply
from common.settings import Secret
from common.streams.group import ConsumerGroup
from consumer.tables import PRICES
from consumer.writer import Writer
from tests.support.pipeline import Pipeline
from tests.support.sessions import StoredSession, entry

NASTY = "\x1b]0;owned\x07\x1b[2J\n\x7f\x9b31m\u202eABC"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\n\x7f\x9b31m\u202eABC"

IN_JSON = r"\u001b]0;owned\u0007\u001b[2J\n\u007f\u009b31m\u202eABC"


def test_commands_escape_control_characters_in_external_text(pipeline: Pipeline) -> None:
    session_start = time.time() - 100
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        apply(store)
        session = StoredSession(store, session_start)
        session.emit("started", 0, feed=NASTY)
        session.emit("instrument", 0, symbol=NASTY)
        session.store([1], symbol=NASTY, exchange=NASTY)
        session.checkpoint("alive", 1, 2)  # number 2 is missing
        Writer(store).insert_batch(PRICES, "prices", [entry({"symbol": NASTY, NASTY: NASTY})])
    ConsumerGroup(pipeline.redis, "prices", NASTY, NASTY).ensure_group()
    pipeline.prices.ensure_group()
    commands = [
        ("status",),
        ("status", "--json"),
        ("verify", "--claim-idle", "0"),
        ("verify", "--claim-idle", "0", "--json"),
        ("doctor",),
        ("doctor", "--json"),
        ("dead-letters", "list"),
    ]
    for command in commands:
        process = pipeline.processes.start("tickpipe", *command)
        process.wait()
        said = process.said()
        found = [each for each in said if unicodedata.category(each) == "Cc" or each == "\u202e"]
        assert set(found) <= {"\n"}, (command, said)
        if "--json" in command:
            json.loads(said)
        assert (IN_JSON if "--json" in command else SHOWN) in said, command
