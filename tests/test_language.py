"""The words of the code: banned phrases, functions named by participles, nested conditional expressions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = ("core", "studio", "examples", "benchmarks", "docs", "assets")
TEXTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "assets/embedded-base/README.md",
    "assets/sample/README.md",
    "assets/museum/README.md",
)
# Phrases that a reader of the field would have to translate. Each is a regular expression, case does not
# matter.
PHRASES = (
    r"\bwhoever\b",
    r"\bnobody\b",
    r"\bsomeone\b",
    r"\bsomebody\b",
    r"\bheeds?\b",
    r"\bis heard\b",
    r"\bare heard\b",
    r"\bbe heard\b",
    r"\bhears?\b",
    r"\bhung on\b",
    r"\bhangs? (on|beside)\b",
    r"\b(is|are|be|being) lent\b",
    r"\blends?\b",
    r"\bdice\b",
    r"\bis no [a-z]",
    r"\bare no [a-z]+s\b(?! (left|more|yet|here|there))",
    r"\bthe trades?\b",
    r"\b(this|that|which) room\b",
    r"\brooms below\b",
    r"\bKnows nothing\b",
    r"^\s*Knows\b",
    r"\bgets? on with\b",
    r"\bspeaks? of\b",
    r"\bis told\b",
    r"\bare told\b",
    r"\btaught our habits\b",
    r"\ba crew\b",
    r"\bthe crew\b",
    r"\bthe lineup\b",
    r"\bthe line of\b",
    r"\bwishe[sd]?\b",
    r"\bwhat there is\b",
    r"\bwhat is there\b",
    r"\bthe like\b",
    r"\blisten(s|ed)? to\b",
    r"\bby name of\b",
    r"\bsaid so\b",
    r"\bat home\b",
    r"\bthe house\b",
    r"\bhouse rules?\b",
    r"\bdoor of\b",
    r"\bits? own door\b",
    r"\bhow .{3,40} fares?\b",
    r"\bat rest\b",
    r"\btalk(s|ed|ing)? to\b",
    r"\bto the letter\b",
    r"\bgone on with\b",
    r"\bunfolds?\b",
    r"\bbreaks? off\b",
    r"\bat fault\b",
    r"\b(is|are) asked\b",
    r"\ba token a\b",
    r"\bgets? along\b",
    r"\bplays? an adapter\b",
    r"\bas it lies\b",
    r"\bin view\b",
    r"\banew\b",
    r"\bgoes on\b",
    r"\bunder way\b",
    r"\bmend(s|ed)?\b",
    r"\bunasked\b",
    r"\bone \w+ an? (row|column|mix|token)\b",
    r"\bas if nothing had\b",
)
# Lines that may say one of them, because files on disk or other libraries hold the word as a key.
ALLOWED_LINES = frozenset(
    {  # sentences that the embedded base was trained on
        'sign = rng.choice(("Your friend", "With love", "Best wishes"))',
        '"Hello, my friend. It is nice to hear from you. I was just thinking about {food}.",',
        '"I would like to hear a story about {a}.",',
        '"Someone gave {s} a fine {v} colour.",',
        '"At home, {s} keeps a {v}.",',
    }
)
IRREGULAR = frozenset(
    [
        "told",
        "kept",
        "shown",
        "drawn",
        "written",
        "taken",
        "made",
        "given",
        "heard",
        "found",
        "said",
        "held",
        "sent",
        "built",
        "known",
        "chosen",
        "left",
        "hung",
        "met",
        "seen",
        "spoken",
        "lent",
        "begun",
        "gone",
        "won",
        "got",
        "taught",
        "thought",
        "sought",
        "understood",
        "bound",
        "caught",
        "dealt",
        "done",
        "driven",
        "fallen",
        "felt",
        "forgotten",
        "frozen",
        "grown",
        "hidden",
        "laid",
        "led",
        "lost",
        "meant",
        "paid",
        "risen",
        "run_on",
        "shut",
        "slept",
        "sold",
        "stood",
        "struck",
        "sworn",
        "thrown",
        "torn",
        "understood",
        "woken",
        "worn",
        "wrung",
        "broken",
        "brought",
        "bought",
        "come_back",
        "become",
    ]
)
# Words that end like participles and are none, or are nouns of the field.
NOT_PARTICIPLES = frozenset(
    [
        "damaged",  # an item that cannot be read
        "embed",
        "feed",
        "seed",
        "speed",
        "need",
        "shed",
        "exceed",
        "proceed",
        "bed",
        "red",
        "hundred",
        "string",
        "ring",
        "bring",
        "ping",
        "thing",
        "nothing",
        "setting",
        "warning",
        "sampling",
        "encoding",
        "heading",
        "training",
        "evening",
        "spring",
        "indeed",
        "unneed",
        "nested",
    ]
)
PREDICATES = frozenset({"is", "are", "has", "have", "was", "can", "should", "needs"})
# Names that a base class or another library calls.
FOREIGN_NAMES = frozenset({"training_step", "_missing_", "loglikelihood_rolling"})


def files() -> list[Path]:
    code = [p for folder in CODE for s in ("*.py", "*.js") for p in sorted((ROOT / folder).rglob(s))]
    return [*code, ROOT / "launch.py", *(ROOT / t for t in TEXTS)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_participle(word: str) -> bool:
    if word in NOT_PARTICIPLES:
        return False
    return word in IRREGULAR or (len(word) > 3 and word.endswith(("ed", "ing")))


def is_named_by_participle(name: str) -> bool:
    """Whether the first or the last word of a function's name is a participle; `is_loaded` is a predicate
    and fine.
    """
    words = name.strip("_").split("_")
    if words[0] in PREDICATES:
        return False
    return is_participle(words[0]) or is_participle(words[-1])


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_texts_are_free_of_banned_phrases(path: Path) -> None:
    found = [
        f"{name_of(path)}:{number}: {match.group(0)!r}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if line.strip() not in ALLOWED_LINES
        for phrase in PHRASES
        for match in re.finditer(phrase, line, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", [p for p in files() if p.suffix == ".py"], ids=name_of)
def test_functions_are_named_by_verbs_and_nouns(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [
        f"{name_of(path)}:{node.lineno}: {node.name}"
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name not in FOREIGN_NAMES
        and is_named_by_participle(node.name)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", [p for p in files() if p.suffix == ".py"], ids=name_of)
def test_conditional_expressions_are_not_nested(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [
        f"{name_of(path)}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.IfExp)
        and any(isinstance(n, ast.IfExp) for child in ast.iter_child_nodes(node) for n in ast.walk(child))
    ]
    assert not found, "\n".join(found)


def test_lines_end_by_column_110() -> None:
    assert re.search(
        r"^line-length = 110$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
