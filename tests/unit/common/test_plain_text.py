"""Files and values with the characters that editors and copying add."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import settings
from common.errors import ConfigurationError
from common.plain_text import MAX_BYTES
from common.symbols import read_symbols

KEY = "s3cr3tk3y"
#: Characters that no screen shows, of each kind.
INVISIBLE = [
    "\ufeff", "\u200b", "\u200d", "\u2060", "\u00ad", "\u202e", "\u00a0", "\u2007", "\u3000", "\u2028", "\x1b",
    "\x7f", "\x85", "\x0b", "\u3164", "\u2800", "\ufe0f", "\u034f", "\ue000",
]  # fmt: skip
#: A text as an editor saves it: the encoding, and the codec that writes it with its byte order mark.
SAVED_AS: dict[str, Callable[[str], bytes]] = {
    "UTF-8": lambda text: text.encode(),
    "UTF-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16 of Windows": lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
    "UTF-16 big-endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
}


def read_key(file: Path) -> str:
    return settings.api_key({"TWELVE_DATA_API_KEY_FILE": str(file)})().reveal()


@pytest.mark.parametrize("saved", SAVED_AS.values(), ids=SAVED_AS)
@pytest.mark.parametrize("content", [KEY, f"{KEY}\r\n", f"{KEY} \t\n\n", f'"{KEY}"\r\n', f"'{KEY}'", f"  {KEY}"])
def test_a_plain_key_file_is_read(tmp_path: Path, saved: Callable[[str], bytes], content: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(saved(content))
    assert read_key(file) == KEY


@pytest.mark.parametrize("name", ["REDIS_URL", "DATABASE_URL"])
@pytest.mark.parametrize("saved", SAVED_AS.values(), ids=SAVED_AS)
def test_a_plain_url_file_is_read(tmp_path: Path, saved: Callable[[str], bytes], name: str) -> None:
    file = tmp_path / "url"
    file.write_bytes(saved('"redis://:p@host"\r\n'))
    secret = settings.read_secret({f"{name}_FILE": str(file)}, name)
    assert secret is not None
    assert secret.reveal() == "redis://:p@host"


@pytest.mark.parametrize("saved", SAVED_AS.values(), ids=SAVED_AS)
def test_a_plain_symbols_file_is_read(tmp_path: Path, saved: Callable[[str], bytes]) -> None:
    file = tmp_path / "symbols"
    file.write_bytes(saved("BTC/USD\r\n\"ETH/USD\",'AAPL'  \r\n\r\n# ü\r\nMSFT\tIBM\r"))
    assert read_symbols([], file) == ["BTC/USD", "ETH/USD", "AAPL", "MSFT", "IBM"]


@pytest.mark.parametrize("character", INVISIBLE, ids=ascii)
@pytest.mark.parametrize(
    "place", [f"{KEY[:4]}{{}}{KEY[4:]}", f" {{}}{KEY}", f"{KEY}{{}}\n"], ids=["in", "before", "after"]
)
@pytest.mark.parametrize("name", ["TWELVE_DATA_API_KEY", "REDIS_URL", "DATABASE_URL"])
def test_an_invisible_character_in_a_secret_is_shown_escaped(
    tmp_path: Path, character: str, place: str, name: str
) -> None:
    file = tmp_path / "secret"
    file.write_text(place.format(character), encoding="utf-8")
    for environ, title in (({name: place.format(character)}, name), ({f"{name}_FILE": str(file)}, str(file))):
        with pytest.raises(ConfigurationError) as caught:
            settings.read_secret(environ, name)
        assert title in str(caught.value)
        assert ascii(character) in str(caught.value)
        assert str(caught.value).isprintable()
        assert KEY[:4] not in str(caught.value)


@pytest.mark.parametrize("character", INVISIBLE, ids=ascii)
def test_an_invisible_character_in_a_symbol_is_shown_escaped(tmp_path: Path, character: str) -> None:
    file = tmp_path / "symbols"
    file.write_text(f"AAPL\nBTC{character}/USD\n", encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        read_symbols([], file)
    assert f"{file}, line 2" in str(caught.value)
    with pytest.raises(ConfigurationError) as of_option:
        read_symbols([f"{character}AAPL"], None)
    assert "--symbols" in str(of_option.value)
    for error in (caught, of_option):
        assert ascii(character) in str(error.value)
        assert str(error.value).isprintable()


@given(st.binary(max_size=40))
def test_any_bytes_are_a_printable_key_or_refused_without_them(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any-key"
    file.write_bytes(content)
    refusal, key = "", "key"
    try:
        key = read_key(file)
    except ConfigurationError as error:
        refusal = str(error)
    assert str(file) in refusal or not refusal
    assert refusal.isprintable()
    assert re.fullmatch("[!-~]+", key)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


#: Files that hold no text, and a part of the reason.
UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda _: None, "No such file"),
    "folder": (Path.mkdir, "directory"),
    "FIFO": (make_fifo, "FIFO, not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "device, not a regular file"),
    "dangling link": (lambda path: path.symlink_to("nothing"), "No such file"),
    "loop": (lambda path: path.symlink_to(path), "symbolic links"),
    "huge": (lambda path: path.write_bytes(b"a" * (MAX_BYTES + 1)), "more than 1,048,576 bytes"),
    "not text": (lambda path: path.write_bytes(b"AAPL \xff\n"), "not UTF-8 text at byte 6"),
    "UTF-16 without a mark": (lambda path: path.write_bytes("AAPL".encode("utf-16-le")), "NUL .*UTF-8"),
    "half a character": (lambda path: path.write_bytes(b"\xff\xfeA"), "not UTF-16 text"),
}


@pytest.mark.parametrize(("make", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_without_text_is_named_with_the_reason(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    file = tmp_path / "the.file"
    make(file)
    with pytest.raises(ConfigurationError, match=rf"--symbols-file .*the\.file cannot be read: .*{reason}"):
        read_symbols(["AAPL"], file)
    for name in ("TWELVE_DATA_API_KEY", "REDIS_URL", "DATABASE_URL"):
        with pytest.raises(
            ConfigurationError, match=rf"{name}_FILE names .*the\.file, which cannot be read: .*{reason}"
        ):
            settings.read_secret({f"{name}_FILE": str(file)}, name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_a_file_of_another_user_is_named(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0)
    with pytest.raises(ConfigurationError, match="cannot be read: Permission denied"):
        read_key(file)


@pytest.mark.parametrize("content", ["", " \r\n", "\ufeff", "''", '" "'], ids=ascii)
def test_an_empty_secret_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="key, which is empty"):
        read_key(file)


@pytest.mark.parametrize("value", [" ", "''", '"\n"'])
def test_a_variable_of_blanks_is_not_taken_for_unset(value: str) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL is set to blanks"):
        settings.redis_url({"REDIS_URL": value})


@pytest.mark.parametrize("key", [f"{KEY} {KEY}", f"{KEY}\n{KEY}", f'"{KEY}', f"{KEY}'", "s3cr3\u0442"])
def test_a_key_of_other_characters_is_refused_without_it(key: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^TWELVE_DATA_API_KEY holds the character .* at position") as caught:
        settings.api_key({"TWELVE_DATA_API_KEY": key})
    assert KEY[:3] not in str(caught.value)


@pytest.mark.parametrize("path", [f"redis://:{KEY}@host", "0123456789abcdef0123456789abcdef", f"password={KEY}"])
def test_a_secret_in_place_of_its_file_is_not_shown(path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"NAME_FILE names .*, which cannot be read") as caught:
        settings.read_secret({"NAME_FILE": path}, "NAME")
    assert path not in str(caught.value)
    assert KEY not in str(caught.value)


def test_an_invisible_character_in_a_path_is_shown_escaped(tmp_path: Path) -> None:
    file = tmp_path / "key\u200b"
    for read in (read_key, lambda path: read_symbols([], path)):
        with pytest.raises(ConfigurationError, match=r"key\\u200b.* cannot be read: No such file"):
            read(file)
