"""Secrets come from variables or files, and show themselves to `reveal()` only."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from common import settings
from common.errors import ConfigurationError
from common.settings import Secret, read_secret

KEY = "s3cr3t-k3y"
#: Variable, and how it is read.
URLS = {"REDIS_URL": settings.redis_url, "DATABASE_URL": settings.database_url}


def test_a_secret_shows_itself_to_reveal_only() -> None:
    secret = Secret(KEY)
    assert secret.reveal() == KEY
    for shown in (repr(secret), str(secret), f"{secret}", "%s %r" % (secret, [secret])):  # noqa: UP031
        assert KEY not in shown


@pytest.mark.parametrize(("environ", "expected"), [({"NAME": KEY}, KEY), ({}, None), ({"NAME": ""}, None)])
def test_a_secret_is_read_from_its_variable(environ: dict[str, str], expected: str | None) -> None:
    secret = read_secret(environ, "NAME")
    assert (secret.reveal() if secret else None) == expected


def test_or_from_the_file_that_a_variable_names(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    secret = read_secret({"NAME_FILE": str(tmp_path / "key"), "NAME": ""}, "NAME")
    assert secret is not None
    assert secret.reveal() == KEY


@pytest.mark.parametrize(
    ("environ", "content", "words"),
    [
        ({"NAME": KEY}, b"other", "NAME and NAME_FILE are both set"),
        ({}, None, "NAME_FILE names .*secret, which cannot be read"),
        ({}, b"\xff", "NAME_FILE names .*secret, which cannot be read"),
        ({}, b" \n", "NAME_FILE names .*secret, which is empty"),
    ],
    ids=["both", "missing", "binary", "empty"],
)
def test_what_is_wrong_with_a_secret_is_said_without_it(
    tmp_path: Path, environ: dict[str, str], content: bytes | None, words: str
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_secret({**environ, "NAME_FILE": str(file)}, "NAME")
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("name", "default"),
    [("REDIS_URL", "redis://localhost:6379/0"), ("DATABASE_URL", "postgresql://localhost:5432/tickpipe")],
)
def test_urls_have_the_contracts_defaults(name: str, default: str) -> None:
    assert URLS[name]({}).reveal() == default
    other = default.replace("localhost", "host")
    assert URLS[name]({name: other}).reveal() == other


def test_the_api_key_has_none() -> None:
    with pytest.raises(ConfigurationError, match=r"set TWELVE_DATA_API_KEY \(or TWELVE_DATA_API_KEY_FILE\)"):
        settings.api_key({})


def test_the_keys_file_is_read_at_each_call_so_that_a_key_can_be_rotated(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old")
    read = settings.api_key({"TWELVE_DATA_API_KEY_FILE": str(file)})
    assert read().reveal() == "old"
    file.write_text("new")
    assert read().reveal() == "new"
