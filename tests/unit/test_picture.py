"""The tree as a picture: text for dot, byte for byte, and what Graphviz makes of it."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from seen_host import tree_of

from cloudinit_conntrack.host.graphviz import rendered
from cloudinit_conntrack.picture import dot_text, quoted
from cloudinit_conntrack.said import Node

HERE = Path(__file__).parent
# What dot, HTML, XML, C, a shell or a terminal would take for something else.
HOSTILE = ("\\", "\\\\", 'a"b', "\\n \\l \\N \\G", "&lt;b&gt; & <i>", "[x]{y|z};", "$(id) `id` %s", "→ ü 漢", "ends \\")


def drawn_by_dot(text: str, *options: str) -> str:
    done = subprocess.run(["dot", *options], input=text, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "", done.stderr
    return done.stdout


def test_the_text_for_dot() -> None:
    assert dot_text(tree_of()) == (HERE / "tree/whole.dot").read_text()


def test_dot_draws_it_and_every_node_is_there() -> None:
    graph = json.loads(drawn_by_dot((HERE / "tree/whole.dot").read_text(), "-Tjson0"))
    text = (HERE / "tree/whole.txt").read_text()
    nodes = [line for line in text.split("\n") if line and not line.strip(" │").startswith("-> ")]
    assert len(graph["objects"]) == len(nodes)
    assert len(graph["edges"]) == len(nodes) - 1  # it is a tree


@pytest.mark.parametrize("words", HOSTILE)
def test_words_come_out_as_they_went_in(words: str) -> None:
    """The label of the SVG, as an XML parser reads it."""
    svg = rendered(dot_text((Node("a", "rule", words),)), "tree.svg")
    texts = [t.text for t in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert texts == [words]


def test_newlines_escapes_and_bytes_that_are_no_text_do_no_harm() -> None:
    node = Node("a", "rule", "one\ntwo\x1b[2J\0 caf\udce9", "", 'do "\\l" it')
    svg = rendered(dot_text((node,)), "tree.svg")
    texts = [t.text for t in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["one?two?[2J? caf\N{REPLACEMENT CHARACTER}", '→ do "\\l" it']


def test_quoting() -> None:
    assert quoted('a"\\&') == '"a\\"\\\\&amp;"'
    assert quoted("a", "b", end="\\l") == '"a\\lb\\l"'


def test_many_like_nodes_are_folded() -> None:
    tree = (Node("r", "module", "m", children=tuple(Node(str(n), "rule", f"rule {n}") for n in range(300))),)
    assert dot_text(tree).count("fillcolor=\"#dbeafe\"") == 5 and "295 more like these" in dot_text(tree)
    assert dot_text(tree, verbose=True).count("fillcolor=\"#dbeafe\"") == 300


def test_nothing_to_draw_is_drawn_as_such() -> None:
    assert "nothing is tracked" in dot_text(())
    drawn_by_dot(dot_text(()), "-Tjson0")
