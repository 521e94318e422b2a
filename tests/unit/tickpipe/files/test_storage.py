"""Files of an export: their names, and that a name belongs to complete files only."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from pyarrow import fs

from common.errors import ConfigurationError
from tickpipe.files.partition import Partition, symbol_of
from tickpipe.files.storage import BusyError, Storage


@pytest.fixture(params=["local", "remote"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A folder, and the same folder as a file system that knows no renaming of local files."""
    if request.param == "local":
        return Storage(str(tmp_path))
    return Storage("", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()))


def test_a_path_has_symbol_and_day() -> None:
    partition = Partition("BTC/USD ü=%", date(2026, 3, 2))
    path = partition.path("parquet")
    assert path == "symbol=BTC%2FUSD%20%C3%BC%3D%25/date=2026-03-02/ticks.parquet"
    assert symbol_of(f"/some/folder/{path}") == partition.symbol
    assert symbol_of("folder/ticks.parquet") == ""
    assert (partition.since, partition.until) == (datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC))


def test_a_file_gets_its_name_at_the_end(storage: Storage, tmp_path: Path) -> None:
    target = tmp_path / "symbol=A/ticks.parquet"
    if storage.place == "":
        target.parent.mkdir()  # S3 has no folders
    with storage.replacement("symbol=A/ticks.parquet") as new:
        new.write_bytes(b"one")
        assert not target.exists()
        assert not storage.exists("symbol=A/ticks.parquet")
    assert target.read_bytes() == b"one"
    with suppress(KeyError), storage.replacement("symbol=A/ticks.parquet") as new:
        new.write_bytes(b"half")
        raise KeyError
    with storage.replacement("symbol=A/ticks.parquet"):
        pass  # nothing new
    assert target.read_bytes() == b"one"
    assert storage.paths() == ["symbol=A/ticks.parquet"]
    assert [path.name for path in target.parent.iterdir()] == ["ticks.parquet"]


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "symbol=A").mkdir()
    for name in ("symbol=A/.ticks.parquet.part", "symbol=A/ticks.parquet", ".tickpipe.lock", "_SUCCESS"):
        (tmp_path / name).touch()
    assert Storage(str(tmp_path)).paths() == ["symbol=A/ticks.parquet"]
    assert Storage(str(tmp_path / "symbol=A/ticks.parquet")).paths() == [""]


def test_one_export_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    with (
        Storage(str(tmp_path / "new")).locked(),
        pytest.raises(BusyError, match="another command of tickpipe writes to"),
        Storage(str(tmp_path / "new")).locked(),
    ):
        pass
    with Storage(str(tmp_path / "new")).locked():
        pass


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("s3://key:s3cr3t@bucket/folder", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"),
        ("ftp://host/folder", "Unrecognized filesystem type"),
    ],
)
def test_an_invalid_url_is_refused_without_its_password(place: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as refused:
        Storage(place)
    assert "s3cr3t" not in str(refused.value)


def test_a_missing_or_unusable_place_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file or folder"):
        Storage(str(tmp_path / "none")).paths()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="file"), Storage(str(tmp_path / "file/below")).locked():
        pass
