"""Views of what an inspection found in a dataset: checks and remedies, lengths, the first packed row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from core.data.inspection.records import (
    Finding,
    Inspection,
    Lengths,
    PackedRow,
    PairExample,
    Repeats,
    RowExample,
    TokenFindings,
)
from studio import formatting
from studio.tree import Node, button, details, node, progress_bar, skeleton, table, title
from studio.views.data import SPLITS

SHOWN_LANGUAGES = 6
LABEL_CHARACTERS = 60
COUNT = formatting.count


def render_progress(text: str, share: float) -> Node:
    """The place of an inspection that is still running."""
    return node(
        "div",
        title("Checks", text),
        progress_bar(share, "Inspection of the dataset"),
        skeleton(5, "The dataset is being inspected"),
    )


def render_failure(problem: str) -> Node:
    """Why a dataset could not be inspected."""
    return node("div", title("Checks"), node("p", problem, cls="problem", role="alert"))


def render_inspection(inspection: Inspection, dataset_id: str) -> Node:
    """Everything that an inspection found, with the buttons that make a better dataset.

    Args:
        dataset_id: the inspected dataset.
    """
    scope = f"Figures {inspection.scope}." if inspection.scope else "All rows were looked at."
    checks = list_checks(inspection, dataset_id)
    problem = node("p", inspection.tokens_problem, cls="note") if inspection.tokens_problem else None
    return node(
        "div",
        title("Checks", scope),
        node("ul", *checks, cls="checklist", aria_label="Checks"),
        _render_languages(inspection),
        problem,
        _render_token_shares(inspection),
        *(_render_tokens(inspection.tokens) if inspection.tokens else ()),
        cls="inspection",
    )


# ---------------------------------------------------------------- checks


def list_checks(inspection: Inspection, dataset_id: str) -> list[Node]:
    """The checks, those that found something first."""
    checks: list[Node | None] = [
        *_check_leaks(inspection),
        _check_repeats(inspection, dataset_id),
        _check_near(inspection, dataset_id),
        _check_conflicts(inspection.conflicts),
        _check_empty(inspection.empty, dataset_id),
        _check_lengths(inspection),
        _check_control_tokens(inspection),
        _check_template(inspection),
        _check_personal(inspection, dataset_id),
    ]
    return sorted((c for c in checks if c is not None), key=lambda c: "good" in c.get("cls", ""))


def _check(state: str, text: str, *more: Node | None) -> Node:
    """One check. `state` is "good", "info", or "warn"."""
    mark = {"good": "✓", "warn": "!", "info": "i"}[state]
    said = {"good": "Nothing found: ", "warn": "Found: ", "info": "Note: "}[state]
    return node(
        "li",
        node("span", mark, cls="mark", aria_hidden="true"),
        node("div", node("p", node("span", said, cls="hidden-text"), text), *more, cls="check-text"),
        cls=f"check {state}",
    )


def _check_repeats(inspection: Inspection, dataset_id: str) -> Node:
    repeats = inspection.repeats
    what = "the same question" if inspection.kind == "task" else "the same text"
    if not repeats.rows:
        return _check("good", f"No rows have {what}.")
    verb = "has" if repeats.rows == 1 else "have"
    text = f"{COUNT(repeats.rows, 'row')} {verb} {what} as an earlier one.{_across(repeats)}"
    act = {"do": "dedup", "dataset": dataset_id, "near": False}
    make = button("Make a dataset without them", act)
    return _check("warn", text, _actions(make, _pairs(repeats.examples)))


def _check_near(inspection: Inspection, dataset_id: str) -> Node:
    near = inspection.near
    if not near.rows:
        return _check("good", "No rows are nearly the same.")
    verb = "is" if near.rows == 1 else "are"
    text = f"{COUNT(near.rows, 'row')} {verb} nearly the same as an earlier one.{_across(near)}"
    act = {"do": "dedup", "dataset": dataset_id, "near": True}
    name = "Make a dataset without any repeats" if inspection.repeats.rows else "Make a dataset without them"
    return _check("warn", text, _actions(button(name, act), _pairs(near.examples)))


def _across(repeats: Repeats) -> str:
    if not repeats.across_splits:
        return " They stay in one split, so no test is spoiled."
    return f" {COUNT(repeats.across_splits, 'group')} of them in several splits."


def _check_conflicts(conflicts: Finding) -> Node | None:
    if not conflicts.rows:
        return None
    verb = "answers" if conflicts.rows == 1 else "answer"
    text = f"{COUNT(conflicts.rows, 'row')} {verb} the question of an earlier row differently."
    return _check("info", text, _rows(conflicts.examples))


def _check_empty(empty: Finding, dataset_id: str) -> Node:
    if not empty.rows:
        return _check("good", "No row is empty.")
    verb = "is" if empty.rows == 1 else "are"
    make = button("Make a dataset without them", {"do": "leave_out", "dataset": dataset_id, "empty": True})
    text = f"{COUNT(empty.rows, 'row')} {verb} empty: there is nothing to learn."
    return _check("warn", text, _actions(make, _rows(empty.examples)))


def _check_lengths(inspection: Inspection) -> Node | None:
    if inspection.tokens is None:
        return None
    lengths = inspection.tokens.lengths
    if not lengths.over:
        return _check("good", f"No row is longer than {COUNT(lengths.max_length, 'token')}.")
    share = formatting.format_percent(lengths.over_share)
    verb = "is" if lengths.over == 1 else "are"
    text = f"{COUNT(lengths.over, 'row')} ({share}) {verb} longer than {COUNT(lengths.max_length, 'token')}. "
    if lengths.cuts:
        text += "Training cuts off the beginning: raise Max length to keep it."
        return _check("warn", text, _rows(lengths.over_examples))
    return _check("info", text + "Training splits such texts into windows; nothing is lost.")


def _check_control_tokens(inspection: Inspection) -> Node | None:
    if inspection.tokens is None:
        return None
    forged = inspection.tokens.forged
    if not forged.rows:
        return _check("good", "No row writes out a control token of the base.")
    verb = "writes" if forged.rows == 1 else "write"
    text = (
        f"{COUNT(forged.rows, 'row')} {verb} out a control token of the base, such as an end mark. It is "
        "read as plain characters, so that no text can end an answer or begin another role."
    )
    return _check("info", text, _rows(forged.examples))


def _check_template(inspection: Inspection) -> Node | None:
    if inspection.tokens is None or not inspection.tokens.refused:
        return None
    refused = inspection.tokens.refused
    verb = "is" if refused == 1 else "are"
    text = f"{COUNT(refused, 'row')} {verb} refused by the chat template of {inspection.tokens.base}: "
    return _check("warn", text + inspection.tokens.refusal)


def _check_personal(inspection: Inspection, dataset_id: str) -> Node:
    if not inspection.personal:
        return _check("good", "No e-mail addresses, phone numbers or keys were found.")
    kinds = ", ".join(f"{p.label} ({p.hits:,})" for p in inspection.personal)
    text = f"These may be personal data or secrets: {kinds}."
    act = {"do": "redact", "dataset": dataset_id}
    placeholders = ", ".join(p.placeholder for p in inspection.personal[:3])
    rows = [[p.label, f"{p.hits:,}", f"{p.rows:,}", ", ".join(p.examples)] for p in inspection.personal]
    shown = table(["Kind", "Found", "Rows", "Examples, masked"], rows, numeric=frozenset({1, 2}))
    return _check(
        "warn",
        text,
        _actions(
            button("Make a redacted dataset", act),
            node("span", f"Writes {placeholders}.", cls="quiet"),
            details("Show examples", shown),
        ),
    )


def _check_leaks(inspection: Inspection) -> list[Node]:
    checks = []
    for leak in inspection.leaks:
        count = leak.rows + leak.near_rows
        near = f" ({leak.near_rows:,} of them nearly)" if leak.near_rows else ""
        here, there = SPLITS.get(leak.split, leak.split), SPLITS.get(leak.other_split, leak.other_split)
        verb = "is" if count == 1 else "are"
        text = (
            f"{COUNT(count, 'row')} of {here.lower()} {verb} also in {there.lower()} of "
            f"{leak.dataset_name}{near}: a figure on them says little."
        )
        checks.append(_check("warn", text, _pairs(leak.examples)))
    if not inspection.leaks and inspection.compared:
        others = COUNT(inspection.compared, "other dataset")
        checks.append(_check("good", f"No test row is trained on: compared with {others}."))
    return checks


def _actions(*kids: Node | None) -> Node:
    return node("div", *kids, cls="row")


def _rows(examples: Sequence[RowExample]) -> Node | None:
    if not examples:
        return None
    lines = [[f"{SPLITS.get(e.split, e.split)}, row {e.row + 1:,}", e.text] for e in examples]
    return details("Show examples", table(["Place", "Row"], lines))


def _pairs(examples: Sequence[PairExample]) -> Node | None:
    if not examples:
        return None
    lines = [[e.first.text, e.second.text, _similarity(e.similarity)] for e in examples]
    return details("Show examples", table(["Row", "Other row", "Alike"], lines, numeric=frozenset({2})))


def _similarity(value: float) -> str:
    return "the same" if value >= 1 else f"{100 * value:.0f} %"


# ---------------------------------------------------------------- languages, lengths, tokens


def _render_languages(inspection: Inspection) -> Node | None:
    shown = inspection.languages[:SHOWN_LANGUAGES]
    if not shown:
        return None
    chips = [
        node("span", f"{s.name} {formatting.format_percent(s.share)}", cls="chip", title=COUNT(s.rows, "row"))
        for s in shown
    ]
    more = len(inspection.languages) - len(shown)
    if more:
        chips.append(node("span", f"and {more} more", cls="quiet"))
    return node("div", node("h3", "Languages"), node("div", *chips, cls="row"))


def _render_token_shares(inspection: Inspection) -> Node | None:
    """The splits in tokens, as a bar; None without tokens or with one split."""
    sizes = [s for s in inspection.splits if s.tokens]
    if not sizes:
        return None
    total = sum(s.tokens for s in sizes)
    parts = [
        node(
            "div",
            node("span", SPLITS.get(s.split, s.split)),
            node("strong", formatting.format_count(s.tokens)),
            node("small", formatting.format_percent(s.tokens / total)),
            cls=f"part {s.split}",
            vars={"share": f"{100 * s.tokens / total:.2f}%"},
        )
        for s in sizes
    ]
    bar = node("div", *parts, cls="parts", role="group", aria_label="Split sizes in tokens")
    return node("div", node("h3", "Tokens"), bar)


def _render_tokens(tokens: TokenFindings) -> list[Node | None]:
    """What was found with the tokenizer of the base."""
    packed = _render_packed_row(tokens.packed) if tokens.packed else None
    return [_render_lengths(tokens.lengths, tokens.base), packed]


def _render_lengths(lengths: Lengths, base: str) -> Node:
    """A histogram of the lengths with the max length as a line."""
    highest = max((b.rows for b in lengths.bins), default=1) or 1
    bars = []
    for one in lengths.bins:
        label = f"{one.low:,} to {one.high:,} tokens: {COUNT(one.rows, 'row')}"
        over = one.low > lengths.max_length
        height = {"height": f"{100 * one.rows / highest:.1f}%"}
        bars.append(node("div", cls="bin over" if over else "bin", vars=height, title=label))
    about = (
        f"Shortest {lengths.shortest:,}, median {lengths.median:,}, longest {lengths.longest:,} tokens of "
        f"{formatting.format_base(base)}. Max length is {lengths.max_length:,}."
    )
    first, last = (lengths.bins[0].low, lengths.bins[-1].high) if lengths.bins else (0, 0)
    return node(
        "div",
        node("h3", "Lengths in tokens"),
        node("div", *bars, _mark_max_length(lengths), cls="histogram", role="img", aria_label=about),
        node("div", node("span", f"{first:,}"), node("span", f"{last:,}"), cls="histogram-axis"),
        node("p", about, cls="quiet"),
    )


def _mark_max_length(lengths: Lengths) -> Node | None:
    """Marks the max length, where some rows are longer."""
    if not lengths.over or not lengths.bins:
        return None
    place = 0.0
    for number, one in enumerate(lengths.bins):
        if one.low <= lengths.max_length:
            inside = (lengths.max_length - one.low + 1) / (one.high - one.low + 1)
            place = (number + min(1.0, inside)) / len(lengths.bins)
    return node(
        "div",
        node("span", "max length"),
        cls="limit",
        vars={"place": f"{100 * place:.1f}%"},
        aria_hidden="true",
    )


def _render_packed_row(packed: PackedRow) -> Node:
    """The first packed row as a strip: each sequence with its trained part, then padding."""
    strips = []
    for number, segment in enumerate(packed.segments):
        runs = _split_runs(packed.trained[segment.start : segment.start + segment.length])
        pieces = [
            node("span", cls="run trained" if trained else "run", vars={"grow": str(count)})
            for trained, count in runs
        ]
        label = segment.label[:LABEL_CHARACTERS]
        tip = f"{label}: {COUNT(segment.length, 'token')}, {segment.trained:,} trained"
        strips.append(
            node("div", *pieces, cls=f"strip n{number % 2}", vars={"grow": str(segment.length)}, title=tip)
        )
    if packed.padding:
        tip = f"Padding: {COUNT(packed.padding, 'token')}"
        strips.append(node("div", cls="strip padding", vars={"grow": str(packed.padding)}, title=tip))
    about = (
        f"{COUNT(packed.width, 'token')} wide: {COUNT(len(packed.segments), 'sequence')}"
        + (f" and {packed.padding:,} of padding. " if packed.padding else ", full. ")
        + f"{COUNT(packed.sequences, 'sequence')} fill {COUNT(packed.rows, 'row')} to "
        f"{formatting.format_percent(packed.fill)}; each sees only itself."
    )
    key = node(
        "p",
        node("span", cls="key trained"),
        "trained on ",
        node("span", cls="key"),
        "read only ",
        node("span", cls="key padding"),
        "padding",
        cls="quiet keys",
    )
    names = [
        [str(n), s.label[:LABEL_CHARACTERS], _window(s), f"{s.length:,}", f"{s.trained:,}"]
        for n, s in enumerate(packed.segments, start=1)
    ]
    heads = ["", "Sequence", "Window", "Tokens", "Trained"]
    return node(
        "div",
        node("h3", "First packed row"),
        node("div", *strips, cls="packed", role="img", aria_label=about),
        key,
        node("p", about, cls="quiet"),
        details("Sequences of this row", table(heads, names, numeric=frozenset({3, 4}))),
    )


def _window(segment: Any) -> str:
    return f"{segment.window} of {segment.windows}" if segment.windows > 1 else "whole"


def _split_runs(trained: Sequence[bool]) -> list[tuple[bool, int]]:
    return [(value, sum(1 for _ in run)) for value, run in itertools.groupby(trained)]
