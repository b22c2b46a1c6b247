"""Reviews the chat template of a base: is it known, does it write what its family's writes, what differs?

A template that differs is used only after a user has accepted it (`core.model.template_choice`). A template
never reads a text, but it decides what stands around texts: it could put words into every prompt.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import jinja2

from core.data.tokens import known_templates, rendering, template_process
from core.data.tokens.known_templates import CONVERSATIONS, SETTINGS, KnownTemplate

DIFF_LINES, LINE_CHARACTERS = 120, 300
TEXT_CHARACTERS = 4000  # of a text, that are compared to find the nearest template
HEADINGS = ("A conversation with a system text", "A question alone")
REFUSED = "(it refuses this conversation)"

Write = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True)
class TemplateReview:
    """What is known about a template.

    Attributes:
        digest: its sha256 (`known_templates.digest_of`); "" where a base has no template of its own.
        text: one sentence about it.
        differs: it writes other texts than the templates of its family.
        is_broken: it exceeds the limits of time, memory or output, and cannot be used.
        diff: lines of a unified diff of what the family's template writes and what this one writes.
    """

    digest: str = ""
    text: str = "The base has no chat template of its own."
    differs: bool = False
    is_broken: bool = False
    diff: tuple[str, ...] = ()


def write_samples(template: str) -> tuple[str, ...]:
    """What a template writes for the two sample conversations; "" where it refuses one.

    Raises:
        TemplateStopped: it exceeds its limits.
    """
    return tuple(_write(template, index) for index in range(len(CONVERSATIONS)))


def _write(template: str, index: int) -> str:
    try:
        return template_process.render(rendering.fix_date(template), CONVERSATIONS[index], SETTINGS)
    except template_process.TemplateStopped:
        raise
    except jinja2.TemplateError:
        return ""


def review(template: str, model_type: str, write: Write = write_samples) -> TemplateReview:
    """Reviews a template.

    Args:
        template: in Jinja.
        model_type: of the base's config.
        write: renders the sample conversations.
    """
    digest = known_templates.digest_of(template)
    if known_templates.is_known(template):
        return TemplateReview(digest, "The template is a known one.")
    try:
        texts = write(template)
    except template_process.TemplateStopped as e:
        return TemplateReview(digest, f"The base's own template cannot be used: {e}.", is_broken=True)
    if any(_writes_the_same(texts, known) for known in known_templates.TEMPLATES):
        return TemplateReview(digest, "The template writes what a known one writes.")
    family = known_templates.list_templates(model_type)
    if not family:
        return TemplateReview(digest, "No template of this family is known to compare it with.")
    nearest = max(family, key=lambda known: _similarity(known, texts))
    return TemplateReview(
        digest,
        f"The base's own template writes other prompts than the known ones of its family; {nearest.title} is "
        "the nearest.",
        differs=True,
        diff=_compare(nearest, texts),
    )


def _writes_the_same(texts: tuple[str, ...], known: KnownTemplate) -> bool:
    """Whether a template writes what a known one writes; a conversation that it refuses does not count."""
    pairs = zip(texts, known.texts, strict=True)
    return any(texts) and all(text in ("", other) for text, other in pairs)


def _similarity(known: KnownTemplate, texts: tuple[str, ...]) -> float:
    pairs = zip(known.texts, texts, strict=True)
    return sum(difflib.SequenceMatcher(None, a, b[:TEXT_CHARACTERS]).ratio() for a, b in pairs)


def _compare(known: KnownTemplate, texts: tuple[str, ...]) -> tuple[str, ...]:
    """A unified diff for each conversation that is written differently."""
    lines: list[str] = []
    for heading, before, after in zip(HEADINGS, known.texts, texts, strict=True):
        if before != after:
            a, b = (
                [line[:LINE_CHARACTERS] for line in (text or REFUSED).split("\n")] for text in (before, after)
            )
            lines += [heading, *list(difflib.unified_diff(a, b, known.title, "this base", lineterm=""))]
    if len(lines) > DIFF_LINES:
        lines = [*lines[:DIFF_LINES], f"(and {len(lines) - DIFF_LINES} more lines)"]
    return tuple(lines)
