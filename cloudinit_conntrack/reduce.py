"""The carried program's files as one short text: no words for readers, no types, nothing that nobody uses.

Pure: Python source in, Python source out (:mod:`ast`).  Names stay what they are, so that a
traceback or a person on the host still finds the place.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

CONFIG = "CONFIG"  # the name whose value userdata gives


class _Bare(ast.NodeTransformer):
    """Takes out docstrings and annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        for argument in (*node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg):
            if argument is not None:
                argument.annotation = None
        _drop_docstring(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        _drop_docstring(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.Assign | None:
        return None if node.value is None else ast.Assign([node.target], node.value)


def _drop_docstring(node: ast.FunctionDef | ast.ClassDef) -> None:
    kept = [part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))]
    node.body = kept or [ast.Pass()]


def reduced(sources: Iterable[str]) -> str:
    """*sources*, each importing from those before it, as one program that ends in ``main()``, without its ``CONFIG``.

    They may name each other's values only by ``from .file import value``, and no name twice for two things.
    """
    imports: dict[str, None] = {}
    body: list[ast.stmt] = []
    for source in sources:
        for node in _Bare().visit(ast.parse(source)).body:
            if isinstance(node, ast.Import):
                imports.update((alias.name, None) for alias in node.names)
            elif not isinstance(node, (ast.ImportFrom, ast.Expr)):
                body.append(node)
    given = [name for part in body for name in _defined(part)]
    twice = {name for name in given if given.count(name) > 1}
    if twice:  # one would take the other's place
        raise ValueError(f"given twice: {', '.join(sorted(twice))}")
    body += ast.parse("sys.exit(main())").body
    used = {node.id for part in body for node in ast.walk(part) if isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Load)}
    body = [part for part in body if not _defined(part) or set(_defined(part)) - _unused(part, used)]
    head = ast.Import([ast.alias(name) for name in sorted(imports) if name in used])
    tree = ast.fix_missing_locations(ast.Module([head, *body], []))
    return re.sub(r"(?m)^(    )+", lambda found: " " * (len(found[0]) // 4), ast.unparse(tree)) + "\n"


def _defined(part: ast.stmt) -> list[str]:
    """The names that a statement at the top of a file gives."""
    if isinstance(part, ast.Assign):
        return [target.id for target in part.targets if isinstance(target, ast.Name)]
    return [part.name] if isinstance(part, (ast.FunctionDef, ast.ClassDef)) else []


def _unused(part: ast.stmt, used: set[str]) -> set[str]:
    return {name for name in _defined(part) if name not in used or name == CONFIG}
