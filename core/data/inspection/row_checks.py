"""Checks of rows that need neither a base nor other datasets: repeats, blanks, languages, personal data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.inspection.boilerplate import strip_instructions
from core.data.inspection.languages import detect_language, name_language
from core.data.inspection.near_duplicates import compute_jaccard, count_shingles, find_near_duplicates
from core.data.inspection.personal_data import LABELS, find_personal_data, list_row_texts, mask, placeholder
from core.data.inspection.records import (
    EXAMPLE_LIMIT,
    EXCERPT,
    Finding,
    Inspection,
    LanguageShare,
    PairExample,
    PersonalDataCount,
    Repeats,
    RowExample,
    SplitSize,
)
from core.data.splits import SPLITS, list_questions, normalize_text

NEAR_ROWS = 50_000  # rows among which near-duplicates are searched; of more, the first ones
LANGUAGE_ROWS = 10_000  # rows whose language is detected; of more, evenly spread ones
PORTION = 1000  # rows between two reports

Step = Callable[[str, int, int], None]  # receives what is done now, rows done, rows in all; may raise


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset in the order of its splits.

    Attributes:
        kind: "domain" or "task".
        rows: the canonical rows.
        places: for each the index of its split in SPLITS, and its number in that split.
        total: rows of the dataset; more than `rows` where only the first ones were read.
    """

    kind: str
    rows: Sequence[Mapping[str, Any]]
    places: Sequence[tuple[int, int]]
    total: int

    def example(self, index: int) -> RowExample:
        split, number = self.places[index]
        return RowExample(SPLITS[split], number, excerpt(show_row(self.rows[index])))

    def pick(self, split: str) -> list[int]:
        """The indices of the rows of a split."""
        return [i for i, (s, _) in enumerate(self.places) if SPLITS[s] == split]


def from_splits(kind: str, splits: Mapping[str, Sequence[Mapping[str, Any]]], total: int = 0) -> Rows:
    """The rows of the three splits, one after the other.

    Args:
        splits: the canonical rows of each split; a missing one is empty.
        total: rows of the dataset, where these are only the first ones.
    """
    places = [(s, i) for s, name in enumerate(SPLITS) for i in range(len(splits.get(name, ())))]
    rows = [row for name in SPLITS for row in splits.get(name, ())]
    return Rows(kind, rows, places, max(total, len(rows)))


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: 2 * EXCERPT].split())
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1] + "…"


def show_row(row: Mapping[str, Any]) -> str:
    """A row as one text: its text, or its messages, each after its role where there are more than two."""
    if "text" in row:
        return str(row["text"])
    messages = row["messages"]
    if len(messages) == 2:
        return f"{messages[0]['content']} → {messages[1]['content']}"
    return " ".join(f"{m['role']}: {m['content']}" for m in messages)


def question_text(row: Mapping[str, Any]) -> str:
    """What near-duplicates are searched by: the text, or the questions without the system text."""
    if "text" in row:
        return str(row["text"])
    asked = [m["content"] for m in row["messages"] if m["role"] not in ("assistant", "system")]
    return "\n".join(asked or [m["content"] for m in row["messages"]])


def answer_key(row: Mapping[str, Any]) -> str:
    """A key that is equal for rows with the same answers; "" for texts."""
    messages = row.get("messages", ())
    return "\0".join(normalize_text(m["content"]) for m in messages if m["role"] == "assistant")


def inspect_rows(rows: Rows, step: Step = lambda text, done, total: None) -> Inspection:
    """Runs the checks that need nothing but the rows.

    Args:
        rows: of a dataset; `leaks` and `tokens` of the result are still empty.
        step: receives the progress.
    """
    total = len(rows.rows)
    step("Searching repeats", 0, total)
    questions = list_questions(rows.rows)
    equal = group_equal(questions)
    repeats = _describe_groups(rows, equal, lambda a, b: 1.0)
    conflicts = [
        i for group in equal for i in group[1:] if answer_key(rows.rows[i]) != answer_key(rows.rows[group[0]])
    ]
    near_total = min(total, NEAR_ROWS)
    step("Searching near-duplicates", 0, total)
    near = [g for g in group_near(rows.rows[:near_total]) if len({questions[i] for i in g}) > 1]
    near = _drop_equal(near, questions)
    empty = [i for i, row in enumerate(rows.rows) if is_blank(row)]
    return Inspection(
        kind=rows.kind,
        rows=rows.total,
        inspected=total,
        splits=measure_splits(rows),
        repeats=repeats,
        near=_describe_groups(rows, near, lambda a, b: _similarity(rows.rows[a], rows.rows[b])),
        near_inspected=near_total,
        conflicts=find(rows, conflicts),
        empty=find(rows, empty),
        languages=count_languages(rows, step),
        personal=count_personal_data(rows, step),
    )


def find(rows: Rows, indices: Sequence[int]) -> Finding:
    """A finding of these rows."""
    return Finding(len(indices), [rows.example(i) for i in indices[:EXAMPLE_LIMIT]])


def is_blank(row: Mapping[str, Any]) -> bool:
    """Whether a row has nothing to learn: a blank text, or an answer without a character."""
    if "text" in row:
        return not str(row["text"]).strip()
    answers = [m for m in row["messages"] if m["role"] == "assistant" and m.get("weight", 1)]
    return not any(str(m["content"]).strip() for m in answers)


def group_equal(questions: Sequence[bytes]) -> list[list[int]]:
    """Groups of rows with one question or text; the result of `splits.list_questions` is given."""
    members: dict[bytes, list[int]] = {}
    for i, question in enumerate(questions):
        members.setdefault(question, []).append(i)
    return [group for group in members.values() if len(group) > 1]


def group_near(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Groups of rows that are nearly equal: texts, or questions with the same answer.

    What many questions begin or end with, an instruction, is not compared.
    """
    if not rows or "text" in rows[0]:
        return find_near_duplicates([question_text(row) for row in rows])
    groups = find_near_duplicates(strip_instructions([question_text(row) for row in rows]))
    divided: list[list[int]] = []
    for group in groups:
        by_answer: dict[str, list[int]] = {}
        for i in group:
            by_answer.setdefault(answer_key(rows[i]), []).append(i)
        divided += [part for part in by_answer.values() if len(part) > 1]
    return divided


def _drop_equal(groups: Iterable[list[int]], questions: Sequence[bytes]) -> list[list[int]]:
    """Leaves one row of each question in the groups, because equal ones are counted as repeats."""
    reduced = []
    for group in groups:
        first: dict[bytes, int] = {}
        for i in group:
            first.setdefault(questions[i], i)
        reduced.append(sorted(first.values()))
    return [group for group in reduced if len(group) > 1]


def _similarity(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    return compute_jaccard(count_shingles(question_text(a)), count_shingles(question_text(b)))


def _describe_groups(
    rows: Rows, groups: Sequence[Sequence[int]], similarity: Callable[[int, int], float]
) -> Repeats:
    across = [group for group in groups if len({rows.places[i][0] for i in group}) > 1]
    shown = [*across, *(group for group in groups if group not in across[:EXAMPLE_LIMIT])][:EXAMPLE_LIMIT]
    examples = []
    for group in shown:
        other = next((i for i in group if rows.places[i][0] != rows.places[group[0]][0]), group[1])
        value = round(similarity(group[0], other), 3)
        examples.append(PairExample(rows.example(group[0]), rows.example(other), value))
    return Repeats(sum(len(g) - 1 for g in groups), len(groups), len(across), examples)


def measure_splits(rows: Rows) -> list[SplitSize]:
    """The sizes of the three splits in characters."""
    counts, characters = [0, 0, 0], [0, 0, 0]
    for row, (split, _) in zip(rows.rows, rows.places, strict=True):
        counts[split] += 1
        characters[split] += count_characters(row)
    total = max(1, sum(characters))
    return [
        SplitSize(name, n, c, 0, c / total) for name, n, c in zip(SPLITS, counts, characters, strict=True)
    ]


def count_characters(row: Mapping[str, Any]) -> int:
    """The characters of a row's text or messages."""
    return len(row["text"]) if "text" in row else sum(len(m["content"]) for m in row["messages"])


def spread(total: int, limit: int) -> Sequence[int]:
    """At most `limit` indices below `total`, evenly spread; all of them where they are few."""
    return range(total) if total <= limit else [i * total // limit for i in range(limit)]


def count_languages(rows: Rows, step: Step) -> list[LanguageShare]:
    """The languages of the rows; of many rows, those of evenly spread ones."""
    chosen = spread(len(rows.rows), LANGUAGE_ROWS)
    counts = Counter[str]()
    for done, i in enumerate(chosen):
        if done % PORTION == 0:
            step("Detecting languages", done, len(chosen))
        counts[detect_language(show_row(rows.rows[i]))] += 1
    order = sorted(counts.items(), key=lambda item: (not item[0], -item[1], item[0]))
    return [LanguageShare(code, name_language(code), n, n / len(chosen)) for code, n in order]


def count_personal_data(rows: Rows, step: Step) -> list[PersonalDataCount]:
    """The personal data in the rows, with masked examples."""
    hits, in_rows = Counter[str](), Counter[str]()
    examples: dict[str, list[str]] = {}
    for i, row in enumerate(rows.rows):
        if i % PORTION == 0:
            step("Searching personal data", i, len(rows.rows))
        kinds = set()
        for text, hit in _list_hits(row):
            hits[hit.kind] += 1
            kinds.add(hit.kind)
            shown = examples.setdefault(hit.kind, [])
            if len(shown) < EXAMPLE_LIMIT and (masked := mask(text, hit)) not in shown:
                shown.append(masked)
        in_rows.update(kinds)
    return [
        PersonalDataCount(kind, LABELS[kind], placeholder(kind), n, in_rows[kind], examples[kind])
        for kind, n in hits.most_common()
    ]


def _list_hits(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for text in list_row_texts(row):
        for hit in find_personal_data(text):
            yield text, hit
