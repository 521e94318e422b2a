"""The house's line budget, so that it stays readable in an afternoon (docs/adr/0002-budget-counts-code.md).

`python tests/unit/test_budget.py` prints the figures of today.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Most lines of code in a package. Over it: delete, or say why in an ADR.
BUDGET = {"common": 1600, "producer": 1200, "consumer": 1200, "tickpipe": 2100}
#: Files and folders that the budget of their package leaves out.
LEFT_OUT = {"tickpipe/simulator.py", "tickpipe/embedded.py", "tickpipe/dashboard.py", "tickpipe/dashboard"}

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def lines_of_code(source: str) -> int:
    """Lines that hold code: no blank ones, no comments, no docstrings. Text inside other strings (SQL, Lua) counts."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _docstring(node):
            first = node.body[0]
            lines.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return ast.get_docstring(node, clean=False) is not None


def files(package: str) -> dict[str, int]:
    """The package's files that count, each with its lines of code."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT)
        if not {str(place) for place in (name, *name.parents)} & LEFT_OUT:
            found[str(name)] = lines_of_code(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("package", BUDGET)
def test_package_is_within_its_budget(package: str) -> None:
    found = files(package)
    assert sum(found.values()) <= BUDGET[package], found


def test_code_is_counted_and_the_rest_is_not() -> None:
    source = '''"""A module's docstring,
on two lines."""

# a comment
NUMBER = 1  # code, with a comment

TEXT = """
a line of text counts

"""


class Thing:
    """A docstring."""

    def method(self) -> int:
        """Another,

        longer.
        """
        return (
            NUMBER
        )
'''
    assert lines_of_code(source) == 1 + 4 + 1 + 1 + 3


if __name__ == "__main__":
    for each, most in BUDGET.items():
        print(f"{each:10} {sum(files(each).values()):5,} of {most:5,}")  # noqa: T201
