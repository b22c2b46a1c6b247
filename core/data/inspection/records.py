"""What an inspection of a dataset finds: lengths, repeats, languages, leaks, personal data, a packed row.

These records are what the page shows and what the cache on the disk holds. They are measured in
`row_checks` (texts alone), `token_checks` (with a tokenizer) and `leakage` (against other datasets).
`core.engine.inspection` runs the three in the background.

Rows are named by their split and their number in it, counted from 0.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

ROW_LIMIT = 200_000  # rows that are inspected; of a larger dataset the first ones
EXAMPLE_LIMIT = 5  # examples of each finding
EXCERPT = 200  # characters of an example


@dataclass(frozen=True)
class RowExample:
    """One row of a finding.

    Attributes:
        split: "train", "val" or "test".
        row: its number in the split, from 0.
        text: its beginning, at most EXCERPT characters; personal data is masked where the finding is one.
    """

    split: str
    row: int
    text: str


@dataclass(frozen=True)
class PairExample:
    """Two rows that are equal or nearly equal.

    Attributes:
        first, second: the rows; `first` comes first in the dataset.
        similarity: Jaccard similarity of their word shingles, from 0 to 1; 1.0 for equal questions or texts.
    """

    first: RowExample
    second: RowExample
    similarity: float


@dataclass(frozen=True)
class Repeats:
    """Rows that repeat others.

    Attributes:
        rows: rows beyond the first of each group; removing them leaves one of each.
        groups: groups of two or more rows.
        across_splits: groups with rows in several splits.
        examples: of pairs.
    """

    rows: int
    groups: int
    across_splits: int
    examples: list[PairExample]


@dataclass(frozen=True)
class Finding:
    """Rows of one kind.

    Attributes:
        rows: how many.
        examples: of rows.
    """

    rows: int
    examples: list[RowExample]


@dataclass(frozen=True)
class LanguageShare:
    """Rows in one language.

    Attributes:
        code: ISO 639 code, or "" where the language is not known: texts that are short, mixed, or code.
        name: English name, or "unknown".
        rows: how many, of those that were looked at: up to 10,000 evenly spread ones.
        share: of the rows that were looked at, from 0 to 1.
    """

    code: str
    name: str
    rows: int
    share: float


@dataclass(frozen=True)
class PersonalDataCount:
    """Personal data of one kind.

    Attributes:
        kind: a key of `personal_data.KINDS`, such as "EMAIL".
        label: what the page calls it, such as "E-mail addresses".
        placeholder: what redacting puts in its place, such as "[EMAIL]".
        hits: how often it occurs.
        rows: rows with at least one.
        examples: masked, such as "j…@…".
    """

    kind: str
    label: str
    placeholder: str
    hits: int
    rows: int
    examples: list[str]


@dataclass(frozen=True)
class Leak:
    """Rows that this dataset shares with another one, where one of the two is trained on.

    Attributes:
        dataset_id, dataset_name: the other dataset.
        split: this dataset's split of the rows: "train" where the other one measures on them.
        other_split: the other dataset's split: "train" where it trains on what this one measures.
        rows: rows of `split` whose question or text is in `other_split` too.
        near_rows: rows of `split` that are nearly equal to one of `other_split`, beside those.
        examples: pairs of a row of this dataset (first) and a row of the other one (second).
    """

    dataset_id: str
    dataset_name: str
    split: str
    other_split: str
    rows: int
    near_rows: int
    examples: list[PairExample]


@dataclass(frozen=True)
class SplitSize:
    """One split.

    Attributes:
        split: "train", "val" or "test".
        rows: inspected rows.
        characters: of their texts.
        tokens: of their texts with the base's template; 0 without a base.
        share: of all tokens, or of all characters where the tokens are not known.
    """

    split: str
    rows: int
    characters: int
    tokens: int
    share: float


@dataclass(frozen=True)
class LengthBin:
    """Rows of `low` to `high` tokens, both inclusive."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True)
class Lengths:
    """Lengths of the rows in tokens of the base, with what its chat template writes.

    Attributes:
        rows: rows that were counted: all of them, or evenly spread ones.
        bins: neighbouring bins of one width, from the shortest row; the last one holds all longer rows, so
            its `high` is the longest one's.
        shortest, median, longest: in tokens.
        tokens: of all rows.
        trained_tokens: of the train split, those with a loss.
        max_length: the max length that rows are compared with.
        over: rows that are longer. Of a conversation, training cuts off the beginning; a long text is split
            into windows instead, and nothing is lost.
        over_share: of the counted rows, from 0 to 1.
        cuts: whether longer rows lose tokens (conversations), or are split into windows (texts).
        over_examples: of longer rows.
    """

    rows: int
    bins: list[LengthBin]
    shortest: int
    median: int
    longest: int
    tokens: int
    trained_tokens: int
    max_length: int
    over: int
    over_share: float
    cuts: bool
    over_examples: list[RowExample]


@dataclass(frozen=True)
class PackedSegment:
    """One sequence in a packed row.

    Attributes:
        start, length: tokens, from the beginning of the row.
        trained: tokens with a loss.
        row: the number of the first of its dataset rows in the train split.
        label: the beginning of its text.
        window: which window of a long text it is, from 1; 0 where the text is not split.
        windows: into how many windows the text is split; 0 where it is not.
    """

    start: int
    length: int
    trained: int
    row: int
    label: str
    window: int = 0
    windows: int = 0


@dataclass(frozen=True)
class PackedRow:
    """The first row that training packs, with the default settings and without replayed texts.

    Attributes:
        width: tokens of a full row.
        segments: its sequences from the left; what they leave is padding.
        ids: the token ids of the row, without padding; `texts` are their texts.
        trained: for each id whether it has a loss.
        padding: tokens.
        rows: how many rows the sequences fill.
        fill: share of all rows that is tokens.
        sequences: how many sequences were packed.
        packed_rows: rows of the train split that were packed: all of them, or the first ones.
    """

    width: int
    segments: list[PackedSegment]
    ids: list[int]
    texts: list[str]
    trained: list[bool]
    padding: int
    rows: int
    fill: float
    sequences: int
    packed_rows: int


@dataclass(frozen=True)
class TokenFindings:
    """What needs the tokenizer of the base.

    Attributes:
        base: name of the base.
        lengths: of the rows.
        forged: rows in which a control token of the base is written out; it is read as plain characters.
        packed: the first packed row; None where nothing is trained (evaluation data).
        refused: rows that the base's chat template refuses, with its words in `refusal`.
        refusal: the template's words for the first of them, or "".
    """

    base: str
    lengths: Lengths
    forged: Finding
    packed: PackedRow | None
    refused: int = 0
    refusal: str = ""


@dataclass(frozen=True)
class Inspection:
    """What was found in a dataset, or in files before their import.

    Attributes:
        kind: "domain" or "task".
        rows: of the dataset.
        inspected: rows that were looked at: all of them, or the first ones of each split.
        splits: sizes of the three splits, in their order; empty ones too.
        repeats: rows that ask the same question, or whose texts read the same.
        near: rows that are nearly equal, beside those: texts, or questions with the same answer.
        near_inspected: rows among which near-duplicates were searched, the first ones.
        conflicts: rows that ask what an earlier row asks, and answer it differently.
        empty: rows with a blank text or answer.
        languages: the most frequent first.
        personal: kinds of personal data that occur, the most frequent first.
        leaks: rows in common with other datasets.
        compared: other datasets that leaks were searched in.
        tokens: what needs a base; None without one.
        tokens_problem: why `tokens` is None, for the user; else "".
    """

    kind: str
    rows: int
    inspected: int
    splits: list[SplitSize]
    repeats: Repeats
    near: Repeats
    near_inspected: int
    conflicts: Finding
    empty: Finding
    languages: list[LanguageShare]
    personal: list[PersonalDataCount]
    leaks: list[Leak] = field(default_factory=list)
    compared: int = 0
    tokens: TokenFindings | None = None
    tokens_problem: str = ""

    @property
    def scope(self) -> str:
        """What the figures are of, where that is not all rows: "of the first 200,000 rows"; else ""."""
        return f"of the first {self.inspected:,} rows" if self.inspected < self.rows else ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
