"""The metrics of an experiment: how each is called, what it needs, and the rule that it is measured by."""

from __future__ import annotations

from dataclasses import dataclass

from core.spec.metric_rules import RULE

FACT_RULE = "words and quantities, rule 1"


@dataclass(frozen=True)
class AnswerMetric:
    """A metric of answers.

    Attributes:
        label: what a reader sees.
        method: how it is measured; it stands beside the figure.
        needs_gold: whether it compares with reference answers.
        needs_passages: whether only rows with documents have it.
        lower_is_better: such as latency.
        is_share: whether it is between 0 and 1 and shown in percent.
        unit: of a figure that is not a share.
    """

    label: str
    method: str
    needs_gold: bool = False
    needs_passages: bool = False
    lower_is_better: bool = False
    is_share: bool = True
    unit: str = ""


ANSWER_METRICS: dict[str, AnswerMetric] = {
    "factuality": AnswerMetric(
        "Factuality", f"share of the gold facts that the answer states ({FACT_RULE})", needs_gold=True
    ),
    "support": AnswerMetric(
        "Support",
        f"share of the stated facts that the passages state ({FACT_RULE})",
        needs_passages=True,
    ),
    "exact_match": AnswerMetric("Exact match", f"all words equal (rule {RULE!r})", needs_gold=True),
    "f1": AnswerMetric("F1", f"overlap of words (rule {RULE!r})", needs_gold=True),
    "citation_coverage": AnswerMetric(
        "Citation coverage",
        "share of sentences with a citation, written by the model, whose passage supports the sentence",
        needs_passages=True,
    ),
    "citation_precision": AnswerMetric(
        "Citation precision", "share of written citations that support their sentence", needs_passages=True
    ),
    "grounded": AnswerMetric("Grounded", "answers whose facts the passages, or the reference, state"),
    "honest_refusal": AnswerMetric("Honest refusals", "refusals where the passages hold no answer"),
    "needless_refusal": AnswerMetric(
        "Needless refusals", "refusals although the passages hold the answer", lower_is_better=True
    ),
    "unsupported": AnswerMetric(
        "Unsupported", "answers that the passages, or the reference, do not support", lower_is_better=True
    ),
    "perplexity": AnswerMetric(
        "Answer perplexity",
        "exp(nats / tokens) of the reference answers",
        needs_gold=True,
        lower_is_better=True,
        is_share=False,
    ),
    "latency": AnswerMetric(
        "Latency",
        "median seconds from the question to the whole answer, retrieval included, one question at a time",
        lower_is_better=True,
        is_share=False,
        unit="s",
    ),
}
GOLD_METRICS = tuple(name for name, metric in ANSWER_METRICS.items() if metric.needs_gold)
