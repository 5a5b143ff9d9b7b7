"""Makes a site of the Markdown of the repository, which has GitHub's links; a hook of mkdocs.yml.

Pages outside docs/ (CHANGELOG, CONTRIBUTING, ...) and files that a page links to, such as numbers
of benchmarks, become files of the site. docs/X is X there, and every other file keeps its path.
README.md is the front page of the repository, docs/index.md that of the site.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
FRONT = "docs/index.md"
_LINK = re.compile(r"(?<=\]\()([^()\s#:]+)(?=[#)\s])")
_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^()\s#]+)\.png\)")
_HREF = re.compile(r"""\s(?:href|src)=["']?([^"'\s>]+)""")
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_LIST_AFTER_TEXT = re.compile(r"^(?![ \-|#>]|\d+\. )(.+)\n(?=- )", re.MULTILINE)


def place(path: str) -> str:
    """The path in the site of a file of the repository."""
    return (FRONT if path == "README.md" else path).removeprefix("docs/")


def source(uri: str) -> str:
    """The path in the repository of a file of the site; the inverse of `place`."""
    return f"docs/{uri}" if (ROOT / "docs" / uri).is_file() else uri


def linked(path: str, text: str) -> Iterator[str]:
    """The repository's files that a page links to, by their paths from its root."""
    for link in _LINK.findall(text):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if target == "README.md":
            target = FRONT
        if (ROOT / target).is_file():
            yield target


def outside() -> list[str]:
    """The repository's files outside docs/ that the site needs, found from the pages' links."""
    todo = [*PAGES, *(f"docs/{p.relative_to(ROOT / 'docs')}" for p in ROOT.glob("docs/**/*.md"))]
    found: list[str] = []
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.append(path)
        if path.endswith(".md"):
            todo += linked(path, (ROOT / path).read_text(encoding="utf-8"))
    return sorted(path for path in found if not path.startswith("docs/"))


def both_schemes(path: str, text: str) -> str:
    """A page's text, in which a figure that is also drawn for dark pages is there as both.

    Such a figure's other file is NAME-dark.png; the theme shows the one for the reader's scheme.
    """

    def both(image: re.Match) -> str:
        words, name = image.groups()
        if not (ROOT / posixpath.dirname(path) / f"{name}-dark.png").is_file():
            return image[0]
        return f"![{words}]({name}.png#only-light)\n![{words}]({name}-dark.png#only-dark)"

    return _IMAGE.sub(both, text)


def for_site(path: str, text: str) -> str:
    """A page of the repository with its links and lists as the site's Markdown takes them."""

    def moved(link: re.Match) -> str:
        for target in linked(path, f"]({link[0]})"):
            return posixpath.relpath(place(target), posixpath.dirname(place(path)) or ".")
        return link[0]  # not a file: MkDocs says so

    parts = _FENCE.split(both_schemes(path, text))
    # GitHub begins a list right after a line of text, Python-Markdown after an empty one.
    parts[::2] = (_LIST_AFTER_TEXT.sub(r"\1\n\n", _LINK.sub(moved, part)) for part in parts[::2])
    return "".join(parts)


def dead_links(built: Path) -> list[str]:
    """`page: link` for each link of a built site to a file of it that is not there.

    MkDocs warns of targets that it does not know, not of those that it leaves out (exclude_docs).
    """
    found = []
    for page in sorted(built.rglob("*.html")):
        if page.name == "404.html":  # its links begin at the server's root
            continue
        for link in _HREF.findall(page.read_text(encoding="utf-8")):
            address = urlsplit(link)
            if address.scheme or address.netloc or not address.path:
                continue
            target = page.parent / unquote(address.path)
            if not (target.is_file() or (target / "index.html").is_file()):
                found.append(f"{page.relative_to(built).as_posix()}: {link}")
    return found


def on_config(config: Any) -> Any:
    """MkDocs: the link to the repository is that of the package, once pyproject.toml has one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.repo_url = project.get("urls", {}).get("Repository")
    return config


def on_files(files: Any, config: Any) -> Any:
    """MkDocs: the files of the site."""
    from mkdocs.structure.files import File

    for path in outside():
        added = File.generated(config, place(path), abs_src_path=os.fspath(ROOT / path))
        files.append(added)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs: a page's text before it becomes HTML."""
    return for_site(source(page.file.src_uri), markdown)


def on_post_build(config: Any, **_: Any) -> None:
    """MkDocs: the whole site is written; a link that leads nowhere is a warning."""
    for dead in dead_links(Path(config.site_dir)):
        logging.getLogger("mkdocs.hooks.site_pages").warning("no such file: %s", dead)
