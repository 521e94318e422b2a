"""A minimal `redis-cli` for the commands on pages: sends one command and prints the reply as redis-cli does.

It supports the options -s and -u; the default is REDIS_URL.
"""

from __future__ import annotations

import os
import sys
from typing import Any, cast

import redis


def shown(reply: object, indent: str = "") -> str:
    """The reply as redis-cli prints it on a terminal."""
    match reply:
        case None:
            return "(nil)"
        case int():
            return f"(integer) {reply}"
        case []:
            return "(empty array)"
        case list():
            width = len(str(len(reply)))
            deeper = indent + " " * (width + 2)
            lines = [f"{number:>{width}}) {shown(each, deeper)}" for number, each in enumerate(reply, 1)]
            return f"\n{indent}".join(lines)
        case bytes():
            text = reply.decode(errors="backslashreplace")
            if text == "OK" or "\r\n" in text:  # a status or the reply of INFO
                return text
            return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    raise TypeError(type(reply))


def main(words: list[str]) -> int:
    """Run one command. Returns 1 if Redis answers with an error."""
    url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
    while words and words[0] in {"-s", "-u"}:
        option, place, *words = words
        url = f"unix://{place}" if option == "-s" else place
    client = redis.Redis.from_url(url, protocol=2)
    connection = cast("Any", client.connection_pool.get_connection())  # execute_command would parse the reply
    try:
        connection.send_command(*words)
        sys.stdout.write(shown(connection.read_response()) + "\n")
    except redis.ResponseError as error:
        sys.stdout.write(f"(error) {error}\n")
        return 1
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
