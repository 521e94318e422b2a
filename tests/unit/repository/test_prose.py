"""tools/prose.py: the text it checks, the counts and the exit status."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def prose() -> ModuleType:
    """The script, loaded as a module."""
    spec = importlib.util.spec_from_file_location("prose_check", ROOT / "tools/prose.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PYTHON = '''"""A module that vouches."""
text = "trouble in a string does not count"  # trouble in a comment counts
def test_nobody_is_here():
    """First line.

    It tells.
    """
'''
MARKDOWN = "Go away.\n```sh\naway\n```\nNobody counts in capitals, nobody does.\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.py", PYTHON, [(1, "vouches"), (2, "trouble"), (3, "nobody"), (6, "tells")]),
        ("a.md", MARKDOWN, [(1, "away"), (5, "nobody")]),
        ("a.sql", "SELECT 'trouble' -- trouble\n", [(1, "trouble")]),
        ("a.lua", "local away = 1 -- goes away\n", [(1, "away")]),
    ],
)
def test_only_comments_docstrings_test_names_and_pages_are_checked(
    prose: ModuleType, tmp_path: Path, name: str, text: str, expected: list[tuple[int, str]]
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert sorted(prose.idioms(tmp_path / name, prose.Count())) == expected


def test_rates_are_per_1000_words(prose: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for name, text in {
        "a.md": "go away " * 5,
        "b.md": "plain " * 90,
        "tests/c.py": "# plain\n",
        "CHANGELOG.md": "away",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    counts = prose.count_groups(tmp_path, ["a.md", "b.md", "tests/c.py", "CHANGELOG.md", "missing.md", "picture.png"])
    assert {group: count.rate for group, count in counts.items()} == {"docs": 50.0, "tests": 0.0}


@pytest.mark.parametrize(
    ("limit", "within_limits", "advice"), [(9.9, False, "Rewrite"), (10, True, ""), (12, True, "10.1")]
)
def test_group_above_its_limit_fails_and_far_below_must_lower_it(
    prose: ModuleType, limit: float, within_limits: bool, advice: str
) -> None:
    lines, result = prose.report({"docs": prose.Count(words=1000, idioms=10)}, {"docs": limit})
    assert result is within_limits
    assert advice in lines[0]
    assert lines[0].startswith("prose: docs: 10.00 idioms per 1,000 words, limit ")
