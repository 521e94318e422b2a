"""Check that the text of the repository is plain technical English.

Counts idioms in comments, docstrings, test names and Markdown. Each group of files has a limit in pyproject.toml
(`[tool.prose]`), in idioms per 1,000 words: lower it when the text improves, never raise it. Libraries with good
documentation have 0.3 to 1.5. The list of idioms is crude: trust the rate, not a single line.

    tools/prose.py              check the limits of all files in git
    tools/prose.py FILE …       print each idiom of these files

Exit status: 0 within the limits, 1 above a limit.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

IDIOMS = [
    r"\b(told|tells?)\b",
    r"\b(last|first|no|its|their|a|the|of|these|more|with|without) words?\b(?! (list|count))",
    r"\bstands?\b(?! (for|by|alone))",
    r"\bhomes?\b",
    r"\b(is|are|was|were) no\b(?! (longer|more))",
    r"\b[Ww]ho(ever)? (is|has|comes|looks|asks|may|breaks|queries|clones|installs|holds|leaves|runs|wants|reads)\b",
    r"\b[Ww]here (it|there|they|none|that|nobody|nothing|no|one)\b",
    r"\baway\b",
    r"\b(nobody|somebody)\b",
    r"(^|[.;:,] |\b(of|for|that|and|is) )[Ww]hat (is|was|has|it|a|the|they|comes|cannot|may|came|waits|stands|looks)\b",
    r"\b(anew|meanwhile|besides)\b",
    r"\bso (many|much|long|wide|often) (as|\w+s)\b",
    r"\btroubles?\b",
    r"\b(vouch\w*|seal(ed|s)?)\b",
    r"\b(lie|lies)\b",
    r"\bholds (it|that|this)\b",
]
_PATTERNS = [re.compile(idiom) for idiom in IDIOMS]

#: A line number, and the text on that line.
Line = tuple[int, str]


@dataclass
class Count:
    """The words and idioms of a group of files."""

    words: int = 0
    idioms: int = 0

    @property
    def rate(self) -> float:
        """Idioms per 1,000 words."""
        return 1000 * self.idioms / max(self.words, 1)


def python_lines(text: str) -> Iterator[Line]:
    """Comments, docstrings and the names of tests."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("#!"):
            yield token.start[0], token.string.lstrip("#: ")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name[5:].replace("_", " ")
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                first = node.body[0].lineno
                yield from ((first + number, line) for number, line in enumerate(docstring.splitlines()))


def markdown_lines(text: str) -> Iterator[Line]:
    """All lines outside of code blocks."""
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield number, line


def dash_comment_lines(text: str) -> Iterator[Line]:
    """The comments of SQL and Lua."""
    for number, line in enumerate(text.splitlines(), 1):
        _, dashes, comment = line.partition("--")
        if dashes:
            yield number, comment


READERS = {".py": python_lines, ".md": markdown_lines, ".sql": dash_comment_lines, ".lua": dash_comment_lines}
#: Files whose past text is not changed.
LEFT_OUT = {"CHANGELOG.md"}


def is_read(path: Path) -> bool:
    """Whether the file holds prose that counts."""
    return path.suffix in READERS and path.name not in LEFT_OUT and path.is_file()


def group_of(name: str) -> str:
    """The group of a file, by its name in git: tests, docs or code."""
    if name.startswith("tests/"):
        return "tests"
    return "docs" if name.endswith(".md") else "code"


def idioms(path: Path, count: Count) -> Iterator[Line]:
    """The idioms of a file, each with its line number; adds the file to `count`."""
    for number, line in READERS[path.suffix](path.read_text(encoding="utf-8")):
        count.words += len(line.split())
        for found in [found for pattern in _PATTERNS for found in pattern.finditer(line)]:
            count.idioms += 1
            yield number, found[0].strip()


def count_groups(root: Path, names: Iterable[str]) -> dict[str, Count]:
    """The count of each group of files below `root`."""
    counts: dict[str, Count] = {}
    for name in names:
        if is_read(root / name):
            list(idioms(root / name, counts.setdefault(group_of(name), Count())))
    return counts


def report(counts: dict[str, Count], limits: dict[str, float]) -> tuple[list[str], bool]:
    """One line for each group, and whether all are within their limits."""
    lines = []
    for group, limit in sorted(limits.items()):
        rate = counts.get(group, Count()).rate
        advice = ""
        if rate > limit:
            advice = ". Rewrite the new text in plain English: `python tools/prose.py FILE` lists its idioms"
        elif rate < limit - 0.1:
            advice = f". Lower the limit in pyproject.toml to {rate + 0.05:.1f}"
        lines.append(f"prose: {group}: {rate:.2f} idioms per 1,000 words, limit {limit:g}{advice}")
    return lines, all(counts.get(group, Count()).rate <= limit for group, limit in limits.items())


def main(arguments: list[str]) -> int:
    """Run the check; return the exit status."""
    if arguments:
        for name in arguments:
            if is_read(Path(name)):
                for number, text in idioms(Path(name), Count()):
                    print(f"{name}:{number}: {text}")
        return 0
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    limits = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["prose"]
    lines, within_limits = report(count_groups(ROOT, listing.stdout.split("\0")), limits)
    print("\n".join(lines))
    return 0 if within_limits else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
