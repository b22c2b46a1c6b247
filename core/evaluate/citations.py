"""Citations in answers: which sentences cite a passage, and whether the passage supports them.

    "The lamp is in the north room [1]. It is red [2]."     sentences with the passages that they cite

Only citations that the model wrote count. Citations that a program attaches afterwards are stored apart and
never reach this module. A passage supports a sentence if it states every quantity of it and at least SUPPORT
of its content words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from core.data.documents.sections import split_sentences
from core.evaluate.facts import CITATION, Facts, read_facts

SUPPORT = 0.6  # of the content words of a sentence
_LEADING = re.compile(rf"\s*(?:{CITATION.pattern}\s*[.,;]?\s*)+")


@dataclass(frozen=True)
class CitedSentence:
    """A sentence of an answer.

    Attributes:
        text: without its citations.
        passages: the numbers that it cites, from 1, each once.
    """

    text: str
    passages: tuple[int, ...]


@dataclass(frozen=True)
class CitationScore:
    """The citations of an answer.

    Attributes:
        sentences: sentences that state something.
        supported: those of them with a citation whose passage supports them.
        citations: citations of these sentences.
        right: citations of an existing passage that supports its sentence.
    """

    sentences: int
    supported: int
    citations: int
    right: int

    @property
    def coverage(self) -> float | None:
        """supported / sentences; None without sentences."""
        return self.supported / self.sentences if self.sentences else None

    @property
    def precision(self) -> float | None:
        """right / citations; None without citations."""
        return self.right / self.citations if self.citations else None


def read_sentences(answer: str) -> list[CitedSentence]:
    """The sentences of an answer with what each cites; a citation after the full stop belongs to it."""
    pieces: list[str] = []
    for line in answer.splitlines():
        for piece in split_sentences(line):
            leading = _LEADING.match(piece)
            if leading and pieces:
                pieces[-1] += f" {leading[0]}"
                piece = piece[leading.end() :]
            if piece.strip():
                pieces.append(piece)
    return [CitedSentence(CITATION.sub(" ", p).strip(), _read_numbers(p)) for p in pieces]


def _read_numbers(text: str) -> tuple[int, ...]:
    numbers = [int(n) for match in CITATION.finditer(text) for n in re.findall(r"\d+", match[1])]
    return tuple(dict.fromkeys(numbers))


def is_supported(sentence: Facts, passage: Facts) -> bool:
    """Whether a passage states every quantity and at least SUPPORT of the words of a sentence."""
    if not all(map(passage.states, sentence.quantities)):
        return False
    shared = Facts(sentence.words).count_common(passage)
    return shared >= SUPPORT * len(sentence.words)


def score_citations(answer: str, passages: Sequence[str]) -> CitationScore:
    """Scores the citations in an answer, as the model wrote it.

    Args:
        passages: the texts that the model was given; [1] is the first.

    Example:
        >>> score_citations("The lamp is red [1]. It is old.", ["A red lamp."]).coverage
        0.5
    """
    read = [read_facts(p) for p in passages]
    sentences = [(read_facts(s.text), s.passages) for s in read_sentences(answer)]
    stating = [(facts, numbers) for facts, numbers in sentences if len(facts)]
    hits = [
        [1 <= n <= len(read) and is_supported(facts, read[n - 1]) for n in numbers]
        for facts, numbers in stating
    ]
    return CitationScore(
        len(stating), sum(map(any, hits)), sum(map(len, hits)), sum(sum(row) for row in hits)
    )
