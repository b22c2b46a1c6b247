"""Inputs of the tests are harmless: no deep nesting, and no pattern with a repetition inside of a repetition.

A guard is tested with input just over its own limit. A scan of the sources sees texts, their sums, products
and formats, literals, and values that a loop wraps. A product of opening brackets whose factor it cannot
compute is refused, so that nothing hides behind a name. It cannot see what a recursive function builds, or
text that a test reads from elsewhere; the files in tests/data are measured on their own.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 64  # levels; our own limit is 32
FOLDERS = ("tests", "benchmarks", "examples")
OPENING, CLOSING = "[{(", "]})"
TAG = re.compile(r"<(/?)[A-Za-z][^<>]*?(/?)>")
# A repetition of a group that itself repeats: (a+)+, ([a-z]*)*, (a|b+){2,}.
REPEATED_REPETITION = re.compile(r"(?<!\\)\((?:[^()\\]|\\.)*(?<!\\)[+*](?:[^()\\]|\\.)*\)(?:[+*]|\{\d+,\})")


@dataclass(frozen=True)
class Nesting:
    """Levels of a text, as a sum of its parts: `peak` above its start, and `net` at its end."""

    peak: int = 0
    net: int = 0

    def __add__(self, other: Nesting) -> Nesting:
        return Nesting(max(self.peak, self.net + other.peak), self.net + other.net)

    def __mul__(self, count: int) -> Nesting:
        if count < 1:
            return Nesting()
        return Nesting(max(self.peak, (count - 1) * self.net + self.peak), count * self.net)


def measure(text: str) -> Nesting:
    """The deepest nesting of brackets or tags in a text; each kind counts for itself."""
    level = peak = 0
    for c in text:
        level += (c in OPENING) - (c in CLOSING)
        peak = max(peak, level)
    tags, tag_peak = 0, 0
    for closing, empty in TAG.findall(text):
        tags += (not closing and not empty) - bool(closing)
        tag_peak = max(tag_peak, tags)
    return Nesting(max(peak, tag_peak), max(level, tags))


class Scan(ast.NodeVisitor):
    """Collects what is nested too deeply, or cannot be seen, in one file."""

    def __init__(self, tree: ast.Module, values: Mapping[str, Any]) -> None:
        self.values, self.problems = dict(values), list[str]()
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.values[node.targets[0].id] = self.compute(node.value)
        self.visit(tree)

    # --- values that the scan can compute

    def compute(self, node: ast.AST) -> Any:
        """The number that an expression is; None if it cannot be seen."""
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            return node.value
        if isinstance(node, ast.Name):
            return self.values.get(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            value = getattr(self.values.get(node.value.id), node.attr, None)
            return value if isinstance(value, (int, float)) else None
        if isinstance(node, ast.BinOp):
            left, right = self.compute(node.left), self.compute(node.right)
            operations = {
                ast.Add: lambda a, b: a + b,
                ast.Sub: lambda a, b: a - b,
                ast.Mult: lambda a, b: a * b,
                ast.FloorDiv: lambda a, b: a // b,
                ast.LShift: lambda a, b: a << b,
                ast.Pow: lambda a, b: a**b,
            }
            if (
                type(node.op) in operations
                and isinstance(left, (int, float))
                and isinstance(right, (int, float))
            ):
                return operations[type(node.op)](left, right)
        return None

    def nesting(self, node: ast.AST) -> Nesting | None:
        """The nesting of a text or a list; None for any other expression."""
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            return measure(node.value if isinstance(node.value, str) else node.value.decode("latin-1"))
        if isinstance(node, ast.JoinedStr):
            parts = [self.nesting(v.value if isinstance(v, ast.FormattedValue) else v) for v in node.values]
            return sum((p for p in parts if p), Nesting())
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self.nesting(node.left), self.nesting(node.right)
            return None if left is None and right is None else (left or Nesting()) + (right or Nesting())
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            return self._format(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return self._multiply(node)
        return None

    def _format(self, node: ast.BinOp) -> Nesting | None:
        text = self.nesting(node.left)
        parts = node.right.elts if isinstance(node.right, ast.Tuple) else [node.right]
        inner = [n for n in map(self.nesting, parts) if n]
        return (
            None if text is None else Nesting(text.peak + max((n.peak for n in inner), default=0), text.net)
        )

    def _multiply(self, node: ast.BinOp) -> Nesting | None:
        for text, factor in ((node.left, node.right), (node.right, node.left)):
            nesting = self._of_list(text) if isinstance(text, ast.List) else self.nesting(text)
            if nesting is None:
                continue
            count = self.compute(factor)
            if isinstance(count, (int, float)):
                return nesting * int(count)
            if nesting.net > 0:
                self._note(node, "the factor of opening brackets cannot be seen: write a number")
            return nesting
        return None

    def _of_list(self, node: ast.List) -> Nesting:
        """What the elements of a list are when they are joined."""
        return sum((n for n in map(self.nesting, node.elts) if n), Nesting())

    # --- what is looked at

    def visit(self, node: ast.AST) -> None:
        nesting = self.nesting(node)
        if nesting is not None and nesting.peak > LIMIT:
            self._note(node, f"{nesting.peak} levels in a text")
        if isinstance(node, (ast.List, ast.Dict, ast.Tuple, ast.Set)) and self._depth(node) > LIMIT:
            self._note(node, f"{self._depth(node)} levels in a literal")
        if isinstance(node, (ast.For, ast.While)):
            self._check_loop(node)
        if isinstance(node, ast.Call):
            self._check_call(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for found in REPEATED_REPETITION.findall(node.value):
                self._note(node, f"a repetition inside of a repetition: {found}")
        self.generic_visit(node)

    def _depth(self, node: ast.AST) -> int:
        inner = max((self._depth(n) for n in ast.iter_child_nodes(node)), default=0)
        return inner + isinstance(node, (ast.List, ast.Dict, ast.Tuple, ast.Set))

    def _check_loop(self, loop: ast.For | ast.While) -> None:
        """A loop that wraps a value, such as `value = [value]`, must end after LIMIT rounds."""
        rounds = self._count_rounds(loop.iter) if isinstance(loop, ast.For) else None
        for node in ast.walk(loop):
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                continue
            name = node.targets[0].id
            if self._wraps(node.value, name) and (rounds is None or rounds > LIMIT):
                self._note(node, f"a loop wraps {name!r} {rounds or 'an unknown number of'} times")

    def _count_rounds(self, node: ast.AST) -> int | None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
            count = self.compute(node.args[min(1, len(node.args) - 1)])
            return int(count) if isinstance(count, (int, float)) else None
        return len(node.elts) if isinstance(node, (ast.Tuple, ast.List)) else None

    def _wraps(self, node: ast.AST, name: str) -> bool:
        """Whether an expression is a container or a text in brackets with the variable itself inside."""
        if isinstance(node, (ast.List, ast.Tuple)):
            return any(isinstance(e, ast.Name) and e.id == name for e in node.elts)
        if isinstance(node, ast.Dict):
            return any(isinstance(v, ast.Name) and v.id == name for v in node.values)
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        is_text = isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.BinOp) and self.nesting(node) is not None
        )
        return is_text and name in names and (self.nesting(node) or Nesting()).peak > 0

    def _check_call(self, node: ast.Call) -> None:
        """Generated values may be nested, too: `st.recursive` names how many leaves they have at most."""
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function != "recursive":
            return
        leaves = next((self.compute(k.value) for k in node.keywords if k.arg == "max_leaves"), None)
        if leaves is None or leaves > LIMIT:
            self._note(node, f"recursive() must have max_leaves of at most {LIMIT}")

    def _note(self, node: ast.AST, what: str) -> None:
        self.problems.append(f"line {getattr(node, 'lineno', 0)}: {what}")


def scan(source: str, values: Mapping[str, Any] | None = None) -> list[str]:
    return list(dict.fromkeys(Scan(ast.parse(source), values or {}).problems))


def imported_values(path: Path) -> dict[str, Any]:
    """The numbers and modules of the core that a file imports: limits that products may name."""
    values: dict[str, Any] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("core"):
            try:
                module = importlib.import_module(str(node.module))
            except ModuleNotFoundError:  # tests/data/make_old_workspace.py runs with an older version
                continue
            for alias in node.names:
                value = getattr(module, alias.name, None)
                if isinstance(value, (int, float)) or type(value).__name__ == "module":
                    values[alias.asname or alias.name] = value
    return values


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ------------------------------------------------------------ what is held


@pytest.mark.parametrize("path", list(sources()), ids=name_of)
def test_no_input_of_a_test_nests_deeper_than_64_levels(path: Path) -> None:
    assert scan(path.read_text(encoding="utf-8"), imported_values(path)) == []


def data_files() -> list[Path]:
    return sorted(p for p in (ROOT / "tests" / "data").rglob("*") if p.is_file() and p.suffix != ".py")


def test_no_data_file_of_the_tests_nests_deeper_than_64_levels() -> None:
    files = data_files()
    assert len(files) > 50
    for path in files:
        lines = path.read_bytes().decode("latin-1").split("\n")
        text = "\n".join(lines)
        parts = lines if path.suffix == ".jsonl" else [text]
        is_text = path.suffix in (".json", ".jsonl", ".txt", ".md", ".csv", ".html", ".xml")
        assert not is_text or max(measure(part).peak for part in parts) <= LIMIT, path


# ------------------------------------------------------------ the scan sees what it says


@pytest.mark.parametrize(
    "source",
    [
        'x = "[" * 65',
        'x = 65 * b"["',
        'x = "{\\"a\\":" * 65 + "}" * 65',
        'x = "<div>" * 65',
        'x = "(" * 60 + "[" * 5',
        "N = 8 * 10\nx = '[' * N",
        "x = '[' * unknown",
        "x = '[' * len(other)",
        "x = '{\"a\": %s}' % ('[' * 64)",
        "x = f\"{{{'[' * 64}\"",
        "x = ''.join(['['] * 65)",
        "x = []\nfor _ in range(65):\n    x = [x]",
        "x = []\nfor _ in range(n):\n    x = {'a': x}",
        "x = 'a'\nwhile True:\n    x = f'[{x}]'",
        "x = 'a'\nfor _ in range(65):\n    x = '[' + x + ']'",
        "s = recursive(base, st.lists)",
        "s = st.recursive(base, st.lists, max_leaves=65)",
        'x = "(a+)PLUS$"',
        'x = r"([a-z]*\\d)PLUS"',
        'x = "(a|bPLUS){2,}"',
    ],
)
def test_the_scan_finds_deep_nesting_and_hidden_factors(source: str) -> None:
    assert len(scan(source.replace("PLUS", "+"))) >= 1


@pytest.mark.parametrize(
    "source",
    [
        'x = "[" * 33 + "]" * 33',
        'x = "[]" * 10_000',
        'x = "the same " * 50_000',
        'x = "x" * unknown',
        "N = 33\nx = '[' * N",
        "x = []\nfor _ in range(33):\n    x = [x]",
        "for x in rows:\n    y = [x]",
        "s = st.recursive(base, st.lists, max_leaves=20)",
        'x = ".*_proj"',
        'x = r"(a|b)*c+"',
        'x = "<p>text</p>" * 5000',
        'x = [["["] * 3]',
    ],
)
def test_the_scan_accepts_harmless_inputs(source: str) -> None:
    assert scan(source) == []
