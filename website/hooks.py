"""Hooks of mkdocs (mkdocs.org, "Hooks"): the README, and what pages link to beside docs/, join the site."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from website import links

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

LANGUAGES = {".yaml": "yaml", ".yml": "yaml", ".cfg": "yaml", ".json": "json", ".py": "python", ".sh": "sh",
             ".conf": "ini", ".hcl": "terraform", ".tf": "terraform", ".service": "ini", ".timer": "ini"}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as the first page, and every file that a page links to, over as many steps as it takes."""
    from mkdocs.structure.files import File

    known = {file.src_uri for file in files}
    waiting = [links.README, *(links.source_of(name) for name in known if name.endswith(".md"))]
    while waiting:
        place = waiting.pop()
        page, path = links.page_of(place), links.REPOSITORY / place
        if page not in known and path.is_file():
            known.add(page)
            if place.endswith(links.PICTURES):
                files.append(File.generated(config, page, abs_src_path=str(path)))
                continue
            files.append(File.generated(config, page, content=_text(place)))
        if place.endswith(".md") and path.is_file():
            found = (link for link in links.links_of(_read(place)) if not links.is_web(link))
            waiting += [there for link in found if links.page_of(there := links.place_of(link, place)[0]) not in known]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository become links of the site."""
    return links.for_site(markdown, links.source_of(page.file.src_uri))


def _read(place: str) -> str:
    return (links.REPOSITORY / place).read_text(encoding="utf-8")


def _text(place: str) -> str:
    """The page of a file beside docs/: Markdown as it is, anything else as a block of code under its name."""
    text = _read(place)
    if place.endswith(".md"):
        return text
    language = LANGUAGES.get(Path(place).suffix, "text")
    return f"# {place}\n\n````{language}\n{text.rstrip()}\n````\n"
