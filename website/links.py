"""Links of our Markdown files, as places in this repository.

Pages are written to be read in the repository: a link is a path from the file it stands in.  On the site a page of
docs/ is where it was, the README is the first page, and any other file that is linked is a page below ``repository/``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = "docs/"
README = "README.md"
ELSEWHERE = "repository/"
PICTURES = (".svg", ".png")
_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^()\s]+)(\))")
_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """*text* with *change* done to what is in no block of code."""
    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence.group()]
        end = fence.end()
    return "".join((*parts, change(text[end:])))


def links_of(text: str) -> list[str]:
    """Every link and picture of *text* outside code."""
    found: list[str] = []

    def take(part: str) -> str:
        found.extend(match.group(2) for match in _LINK.finditer(_CODE.sub("", part)))
        return part

    outside_code(text, take)
    return found


def is_web(link: str) -> bool:
    """Whether *link* leads out of the repository."""
    return link.startswith(("http:", "https:", "mailto:"))


def place_of(link: str, source: str) -> tuple[str, str]:
    """(path in the repository, anchor) of *link*, which stands in the file *source*; a directory is its README."""
    path, _, anchor = link.partition("#")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source
    if (REPOSITORY / place).is_dir():
        place = posixpath.join(place, README)
    return place, anchor


def page_of(place: str) -> str:
    """Where the file *place* of the repository stands on the site, as mkdocs names its sources."""
    if place == README:
        return "index.md"
    if place.startswith(DOCS):
        return place[len(DOCS) :]
    return ELSEWHERE + place + ("" if place.endswith((".md", *PICTURES)) else ".md")


def source_of(page: str) -> str:
    """The file of the repository that *page* of the site is made of."""
    if page == "index.md":
        return README
    if not page.startswith(ELSEWHERE):
        return DOCS + page
    place = page[len(ELSEWHERE) :]
    return place if (REPOSITORY / place).is_file() else place[: -len(".md")]


def for_site(text: str, source: str) -> str:
    """*text* of the file *source* with each link as it must be on the site."""
    here = posixpath.dirname(page_of(source))

    def change(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        if is_web(link) or link.startswith("#"):
            return match.group()
        place, anchor = place_of(link, source)
        return before + posixpath.relpath(page_of(place), here or ".") + ("#" + anchor if anchor else "") + after

    return outside_code(text, lambda part: _LINK.sub(change, part))
