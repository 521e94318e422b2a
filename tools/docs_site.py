"""MkDocs hook: files outside of docs/ become part of the site, and links between both work there as on GitHub.

The site has the files of docs/ at its top, and beside them each file of the repository that a page links to. So
`docs/operations.md` is `operations.md` on the site, and `CONTRIBUTING.md` keeps its name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: The pages at the top of the repository.
TOP_PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "RELEASING.md"]

_LINK = re.compile(r"(?<=\]\()(?!#|[a-z]+:)([^)#\s]+)")
#: A link definition to a page of GitHub that is not a file, such as the comparison of two versions.
_GITHUB_PAGE = re.compile(r"^\[[^]]+\]: \.\./\.\./.*$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add every decision to the navigation."""
    decisions = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs/adr").glob("[0-9]*.md"))
    if config.nav is not None:
        config.nav.insert(-1, {"Decisions": ["adr/README.md", *decisions]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the top of the repository, and the other files outside of docs/ that pages link to."""
    pages = [ROOT / name for name in TOP_PAGES]
    for page in pages:
        _add(files, page, config)
    for page in [*pages, *(Path(file.abs_src_path or "") for file in files.documentation_pages())]:
        for link in _LINK.findall(page.read_text(encoding="utf-8")):
            target = Path(posixpath.normpath(page.parent / link))
            if target.is_file() and files.get_file_from_path(_site_name(target)) is None:
                _add(files, target, config)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Change the links of a page from names in the repository to names on the site."""
    source = Path(page.file.abs_src_path or "")

    def on_site(link: re.Match[str]) -> str:
        target = Path(posixpath.normpath(source.parent / link[0]))
        if target.is_dir():
            target = target / "README.md"
        return posixpath.relpath(_site_name(target), posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(on_site, _GITHUB_PAGE.sub("", markdown))


def _site_name(path: Path) -> str:
    """The name on the site of a file of the repository."""
    base = ROOT / "docs" if path.is_relative_to(ROOT / "docs") else ROOT
    return path.relative_to(base).as_posix()


def _add(files: Files, path: Path, config: MkDocsConfig) -> None:
    files.append(File.generated(config, _site_name(path), abs_src_path=str(path)))
