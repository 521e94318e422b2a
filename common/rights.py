"""The Redis commands that each process uses on a key, in a form that changes nothing. Pure.

Redis checks the rights of a user before it looks at the arguments of a command. So a command with an argument that is
always invalid shows whether the user may send it. `ACL DRYRUN` would show the same, but needs a right of its own.
Each name is the right as `ACL SETUSER` spells it.
"""

from __future__ import annotations

from collections.abc import Mapping

Command = tuple[str | int, ...]
Commands = Mapping[str, Command]

#: An id, and the SHA of a script, that Redis refuses.
_NO_ID, _NO_SCRIPT = "none", "0" * 40
#: A group and a consumer that do not exist: the form of XGROUP DELCONSUMER is valid.
_NOT_THERE = "\0not there"


def look(key: str) -> Commands:
    """Commands that every process uses."""
    return {"type": ("TYPE", key)}


def _scripts(key: str) -> Commands:
    return {"evalsha": ("EVALSHA", _NO_SCRIPT, 1, key), "script|load": ("SCRIPT", "LOAD", "return 0")}


def append(key: str) -> Commands:
    """Commands of a producer on a stream."""
    return {"xadd": ("XADD", key, "0-0", "field", "value"), **_scripts(key)}


def mark(key: str) -> Commands:
    """Commands of append_once.lua on the mark of a session."""
    return {"get": ("GET", key), "set": ("SET", key, "value", "EX", 0)}


def fence(key: str) -> Commands:
    """Commands of append_once.lua on the fence."""
    return {"hget": ("HGET", key, "field")}


def consume(key: str, group: str, consumer: str) -> Commands:
    """Commands of a consumer on a stream."""
    return {
        "exists": ("EXISTS", key),
        "xgroup|create": ("XGROUP", "CREATE", key, group, _NO_ID),
        "xgroup|delconsumer": ("XGROUP", "DELCONSUMER", key, _NOT_THERE, _NOT_THERE),
        "xreadgroup": ("XREADGROUP", "GROUP", group, consumer, "STREAMS", key, _NO_ID),
        "xack": ("XACK", key, group, _NO_ID),
        "xautoclaim": ("XAUTOCLAIM", key, group, consumer, 0, _NO_ID),
        "xpending": ("XPENDING", key, group),
        "xrange": ("XRANGE", key, _NO_ID, _NO_ID),
        "xtrim": ("XTRIM", key, "MINID", _NO_ID),
        "memory|usage": ("MEMORY", "USAGE", key),
        "time": ("TIME",),
        "xinfo|stream": ("XINFO", "STREAM", key),
        "xinfo|groups": ("XINFO", "GROUPS", key),
        "xinfo|consumers": ("XINFO", "CONSUMERS", key, group),
        **_scripts(key),
    }


def remember(key: str) -> Commands:
    """Commands of a consumer on the hash that has the timeline of the database."""
    return {"hset": ("HSET", key, "field", "value", "a field without a value"), "hget": ("HGET", key, "field")}


def members(key: str) -> Commands:
    """The command of every process on the set of the channels' streams. (SADD has no form that changes nothing.)"""
    return {"smembers": ("SMEMBERS", key)}


def scan(key: str) -> Commands:
    """Commands of a producer that looks for the first price of the active one."""
    return {"xrange": ("XRANGE", key, _NO_ID, _NO_ID)}


def now() -> Commands:
    """The command by which a script reads the time."""
    return {"time": ("TIME",)}


def lock(key: str) -> Commands:
    """Commands of redis-py's Lock."""
    return {
        "set": ("SET", key, "value", "EX", 0),
        "get": ("GET", key),
        "del": ("DEL", f"{key}{_NOT_THERE}"),
        "pexpire": ("PEXPIRE", key, _NO_ID),
    }


def report(key: str) -> Commands:
    """Commands of a consumer on the hash of the consumers' statistics."""
    return {
        "hset": ("HSET", key, "field", "value", "a field without a value"),
        "hgetall": ("HGETALL", key),
        "hdel": ("HDEL", key, _NOT_THERE),
    }
