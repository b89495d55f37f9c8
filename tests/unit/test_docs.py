"""The documentation builds as a site that needs no network; links lead somewhere; blocks are what they say."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import jsonschema
import pytest
import yaml
from stubs import LiveHost
from test_cli import STATEFUL, on_host

from cloudinit_conntrack import cli
from cloudinit_conntrack.config import desired_from_section
from cloudinit_conntrack.document import section_of
from cloudinit_conntrack.errors import ConntrackError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from website import links, reference  # noqa: E402

pytestmark = pytest.mark.xdist_group("docs")
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, *sorted(ROOT.glob("*.md")), *sorted((ROOT / "examples").rglob("*.md")),
         *sorted((ROOT / "packer").rglob("*.md"))]  # fmt: skip
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
OUTSIDE = ("http:", "https:", "//")


class Block(NamedTuple):
    """A block of code: *page* and *line* where it begins, its *language*, its *text*."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """The blocks of one page, without the indentation of a list."""
    text = path.read_text(encoding="utf-8")
    return [Block(str(path.relative_to(ROOT)), text[: found.start()].count("\n") + 1, found.group(2),
                  re.sub(f"^{found.group(1)}", "", found.group(3), flags=re.MULTILINE))
            for found in FENCE.finditer(text)]  # fmt: skip


BLOCKS = [block for path in PAGES for block in blocks(path)]
SHELL = [block for block in BLOCKS if block.language in ("sh", "bash")]


# --- the site --------------------------------------------------------------------------


class Seen(HTMLParser):
    """What one page of the site loads, links to, and can be linked to by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids.update(value for name, value in found.items() if name in ("id", "name"))
        self.loads += [found[name] for name in ("src", "srcset", "poster", "data") if found.get(name)]
        (self.loads if tag == "link" else self.leads).extend([found["href"]] if "href" in found else [])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as ``make docs`` builds it."""
    place = tmp_path_factory.mktemp("site")
    # with --quiet, --strict lets everything pass
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.fixture(scope="module")
def seen(site: Path) -> dict[Path, Seen]:
    """Each page of it."""
    return {path: Seen(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_nothing_is_loaded_from_elsewhere(site: Path, seen: dict[Path, Seen]) -> None:
    assert len(seen) > len(DOCS)
    assert {load for page in seen.values() for load in page.loads if load.startswith(OUTSIDE)} == set()
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not re.findall(r"(?:@import|url\()[\"' ]*(?:https?:)?//", "\n".join(styles))


def test_every_link_of_the_site_leads_somewhere(site: Path, seen: dict[Path, Seen]) -> None:
    broken = []
    for path, page in seen.items():
        if path.name == "404.html":
            continue  # its links are made for the top of a server
        for link in (*page.leads, *page.loads):
            place, _, anchor = link.partition("#")
            if link.startswith((*OUTSIDE, "mailto:", "data:", "javascript:")):
                continue
            there = (path.parent / place).resolve() if place else path
            if not there.exists() or (anchor and there in seen and anchor not in seen[there].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_each_page_is_in_the_menu(seen: dict[Path, Seen], site: Path) -> None:
    plain = site / "reference/campaigns.html"  # a page that links to no other by itself
    menu = {(plain.parent / link).resolve().relative_to(site) for link in seen[plain].leads if ":" not in link}
    for path in DOCS:
        assert path.relative_to(ROOT / "docs").with_suffix(".html") in menu, f"{path} is in no menu"


# --- in the repository -----------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    heads = re.findall(r"^#+ (.*)$", links.outside_code(text, lambda part: part), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", head).strip().lower() for head in heads]
    return {re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in plain}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_the_repository(path: Path) -> None:
    for link in links.links_of(path.read_text(encoding="utf-8")):
        if links.is_web(link):
            continue
        place, anchor = links.place_of(link, str(path.relative_to(ROOT)))
        assert (ROOT / place).is_file(), f"{link}: there is no {place}"
        if anchor and place.endswith(".md"):
            assert anchor in anchors((ROOT / place).read_text(encoding="utf-8")), f"{link}: no such heading"


def test_the_reference_is_up_to_date() -> None:
    assert reference.stale() == [], "run: python -m website.reference"


def test_both_lists_of_requirements_say_the_same() -> None:
    def lines(name: str) -> set[str]:
        return {line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")}

    assert lines("docs/requirements.txt") <= lines("tests/requirements.txt")


# --- blocks of code --------------------------------------------------------------------


def sections() -> list[Block]:
    """Blocks that are a document with the section."""
    found = []
    for block in BLOCKS:
        document = yaml.safe_load(block.text) if block.language == "yaml" else None
        if isinstance(document, dict) and "conntrack" in document:
            found.append(block)
    return found


SECTIONS = sections()


@pytest.mark.parametrize("block", SECTIONS, ids=str)
def test_a_section_is_one(block: Block) -> None:
    desired_from_section(section_of(block.text.encode(), str(block)))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=str)
def test_json_is_what_the_schema_says(block: Block) -> None:
    value = json.loads(block.text)
    schema = ROOT / "schema/report.schema.json"
    if "outcome" in value and schema.exists():
        jsonschema.validate(value, json.loads(schema.read_text()))


def commands(text: str) -> list[list[str]]:
    """Our command's words, each time that it stands in *text*."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] | None = None
        try:
            split = [*lexer, ";"]
        except ValueError:  # an open quote, in a text for cat or by mistake: shellcheck tells
            continue
        for word in split:
            if set(word) <= set("();<>|&"):
                if words is not None:
                    found.append(words)
                words = None
            elif word == "cloudinit-conntrack" and words is None:
                words = []
            elif words is not None:
                words.append(word)
    return found


USES = sorted({tuple(words) for block in SHELL for words in commands(block.text)})


@pytest.mark.parametrize("words", USES, ids=" ".join)
def test_a_command_is_one(words: tuple[str, ...]) -> None:
    cli.make_parser().parse_args(words)


def test_a_command_that_is_none_is_found() -> None:
    assert len(SECTIONS) > 40 and len(USES) > 20
    assert commands("x | cloudinit-conntrack plan -c a # b\ncloudinit-conntrack nonsense && y") == [
        ["plan", "-c", "a"], ["nonsense"]]  # fmt: skip
    with pytest.raises(ConntrackError):
        cli.make_parser().parse_args(["nonsense"])


@pytest.mark.parametrize("page", sorted({block.page for block in SHELL}))
def test_shell_is_shell(page: str) -> None:
    """By shellcheck, which parses as well; what a page says in between is not known to it."""
    for block in SHELL:
        if block.page == page:
            done = subprocess.run(["shellcheck", "-s", "bash", "-S", "warning", "-e", "SC2034,SC2154,SC2164", "-"],
                                  input=block.text, capture_output=True, text=True, timeout=60)  # fmt: skip
            assert done.returncode == 0, f"{block}: {done.stdout}"


# --- and run ---------------------------------------------------------------------------

RUN = ("docs/how-to/dedicated-balancer.md", "docs/how-to/revert.md", "docs/explanation/seed-questions.md",
       "docs/how-to/migrate.md")  # fmt: skip
ALLOWED = {"plan": {0, 4}, "verify": {0, 4}}
BY_HAND = {"--confirm-within", "confirm", "--root", "userdata", "enable", "disable"}


@pytest.mark.parametrize("page", RUN)
def test_commands_of_a_page_run(page: str, tmp_path: Path) -> None:
    """In their order, on a host to which the page's first section (or mode unload) is applied."""
    host = LiveHost(tmp_path / "host", ("xt_conntrack", "nf_conntrack", "nf_defrag_ipv4"))
    host.rules("legacy", "ipv4", STATEFUL)
    own = [block.text for block in SECTIONS if block.page == page and "backends" not in block.text]
    (tmp_path / "conntrack.yaml").write_text(own[0] if own else "conntrack: {mode: unload}\n")
    shell = "".join(block.text for block in SHELL if block.page == page)
    lines = [line.partition("#")[0].strip() for line in shell.splitlines()]
    ours = [line for line in lines if line.startswith("cloudinit-conntrack ") and not BY_HAND & set(line.split())]
    assert ours
    before = host.snapshot()
    apply, reverted = "cloudinit-conntrack apply -c conntrack.yaml", True
    for line in (*ours, "cloudinit-conntrack revert"):
        if reverted:
            assert on_host(host, apply, tmp_path).code == 0
        reverted = "revert" in line
        done = on_host(host, line, tmp_path)
        assert done.code in ALLOWED.get(line.split()[1], {0}), (line, done)
        assert not done.err, (line, done)
    assert host.snapshot() == before
