"""The index of words: BM25 over terms, in numpy, divided by the best score that a question can get.

    score(q, d) = Σ_t idf(t) · tf / (tf + k1 · (1 - b + b · |d| / mean |d|))  /  Σ_t idf(t)        t in q
    idf(t)      = ln(1 + N / n_t), where n_t is at least 0.5

A term that no document holds counts in the divisor, so the score is the share of what the question says that
the chunk says, too: from 0 to 1, and comparable between questions and indexes. The usual idf would give a
term of all chunks no weight, and a question about the only subject of a small dataset would find nothing.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009.

Letters: N chunks, V different terms, P postings (pairs of a term and a chunk that holds it).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from core.retrieve.terms import list_terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

K1, B = 1.2, 0.75
BLOCK = 4_000_000  # terms that are counted at once


@dataclass
class WordIndex:
    """The postings of all terms.

    Attributes:
        numbers: term to its number, in V.
        starts: (V + 1,) where the postings of each term begin.
        chunks: (P,) the chunks that hold a term, in their order.
        weights: (P,) the term's part of the score of these chunks, without its idf.
        count: N.
    """

    numbers: dict[str, int]
    starts: NDArray[np.int64]
    chunks: NDArray[np.uint32]
    weights: NDArray[np.float32]
    count: int
    _idf: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        holders = np.diff(self.starts)
        self._idf = np.log1p(self.count / np.maximum(holders, 0.5))

    def score(self, terms: Sequence[str]) -> NDArray[np.float32]:
        """The scores of all chunks for the terms of a question, (N,), from 0 to 1."""
        scores = np.zeros(self.count, np.float32)
        best = 0.0
        unknown = float(np.log1p(self.count / 0.5))
        for term in dict.fromkeys(terms):
            number = self.numbers.get(term)
            if number is None:
                best += unknown
                continue
            idf = float(self._idf[number])
            best += idf
            part = slice(self.starts[number], self.starts[number + 1])
            scores[self.chunks[part]] += np.float32(idf) * self.weights[part]
        return scores / np.float32(best) if best else scores


class WordIndexBuilder:
    """Counts the terms of one chunk after the other."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._terms: list[int] = []  # of the block
        self._lengths: list[int] = []
        self._blocks: list[tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint16]]] = []
        self._counted = 0  # chunks in the blocks before

    def add(self, text: str) -> None:
        """Adds the text of the next chunk."""
        numbers = self._numbers
        terms = [numbers.setdefault(term, len(numbers)) for term in list_terms(text)]
        self._terms += terms
        self._lengths.append(len(terms))
        if len(self._terms) >= BLOCK:
            self._close_block()

    def _close_block(self) -> None:
        lengths = np.array(self._lengths[self._counted :], np.int64)
        chunks = np.repeat(np.arange(self._counted, len(self._lengths), dtype=np.uint64), lengths)
        keys = (np.array(self._terms, np.uint64) << np.uint64(32)) | chunks
        unique, counts = np.unique(keys, return_counts=True)
        self._blocks.append(
            (
                (unique >> np.uint64(32)).astype(np.uint32),
                unique.astype(np.uint32),  # the lower half
                np.minimum(counts, 65535).astype(np.uint16),
            )
        )
        self._terms, self._counted = [], len(self._lengths)

    def finish(self) -> WordIndex:
        """The index of everything that was added."""
        self._close_block()
        terms, chunks, counts = (np.concatenate(parts) for parts in zip(*self._blocks, strict=True))
        order = np.argsort(terms, kind="stable")  # the blocks are in the order of the chunks
        chunks, counts = chunks[order], counts[order].astype(np.float32)
        starts = np.zeros(len(self._numbers) + 1, np.int64)
        np.cumsum(np.bincount(terms, minlength=len(self._numbers)), out=starts[1:])
        lengths = np.array(self._lengths, np.float32)
        mean = max(float(lengths.mean()) if len(lengths) else 0.0, 1.0)
        norms = (K1 * (1 - B + B * lengths / np.float32(mean))).astype(np.float32)
        weights = counts / (counts + norms[chunks])
        return WordIndex(self._numbers, starts, chunks, weights.astype(np.float32), len(lengths))


def build_word_index(texts: Iterable[str]) -> WordIndex:
    """The index of some texts."""
    builder = WordIndexBuilder()
    for text in texts:
        builder.add(text)
    return builder.finish()
