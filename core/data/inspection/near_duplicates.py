"""Near-duplicate texts: groups of texts whose word shingles overlap, found without comparing all pairs.

    text ─ words ─> shingles of three words ─ rarest first ─> prefix ─ inverted index ─> candidate pairs
         ─ sizes, bitmaps ─> few pairs ─ exact Jaccard of the shingles ─> groups (connected components)

Two sets of n and m shingles with a Jaccard similarity of t share a shingle of their prefixes of
n - ceil(t n) + 1 and m - ceil(t m) + 1, whatever the order of all shingles is; with the rarest first, few
other texts share one. Every reported pair is compared exactly, so none is reported by chance.

Sources: prefix filter, Bayardo et al. 2007, "Scaling up all pairs similarity search"; bitmap filter, Sandes
et al. 2020, arXiv 1711.07295; MinHash for shingles that many texts share, Broder 1997.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from core.data.splits import normalize_text
from core.errors import SpecError

SHINGLE_WORDS = 3
THRESHOLD = 0.8
CHUNK_WORDS = 500_000  # words that are hashed at once
RUN_LIMIT = 64  # texts that share a shingle and are compared pair by pair; above, MinHash bands divide them
PIVOT_LIMIT = 32  # texts of a band that are each compared with all other texts of it
BITMAP_WORDS = 16  # of 64 bits each, a text
BANDS, BAND_VALUES = 10, 3  # two texts of similarity 0.8 share a band with a probability of 0.999
_COUNTERS = 1 << 22  # approximate counts of shingles; a collision only makes a prefix less rare
_PUNCTUATION = ".,;:!?\"'()[]{}。、，！？；：「」『』（）…·"
# Scripts that are written without spaces: each character counts as a word.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
Array = Any  # a numpy array


def find_near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[list[int]]:
    """Groups texts that are equal or nearly equal.

    Texts are compared without case, punctuation at the ends of words and the number of blanks. A text of up
    to three words is one shingle, so it only groups with the same words; repeated shingles count as often as
    they occur. The result depends on the texts alone.

    All pairs above the threshold are found, as long as at most `RUN_LIMIT` texts share the rare shingles that
    they are found by. Where more do, MinHash divides them, and a pair at 0.8 is missed in 1 of 1,000 cases.

    Args:
        texts: the texts. Memory: 250 bytes and a fifth of its words, 12 bytes each, a text.
        threshold: Jaccard similarity of two texts of one group, above 0.5 and at most 1.

    Returns:
        Groups of two or more indices, each ascending, ordered by their first index. Texts that are linked
        through others are in one group.

    Raises:
        SpecError: the threshold is outside its limits.

    Example:
        >>> find_near_duplicates(["One two three four.", "Something else", "one  two three four"])
        [[0, 2]]
    """
    if not 0.5 < threshold <= 1:
        raise SpecError(
            f"The threshold of near-duplicates must be above 0.5 and at most 1, got {threshold}.",
            "Choose a value such as 0.8.",
        )
    groups = _Groups(len(texts))
    originals = _join_equal_texts(texts, groups)
    index = _build_index([texts[i] for i in originals], threshold)
    shingles = lru_cache(maxsize=4096)(lambda i: count_shingles(texts[originals[i]]))
    found = _Groups(len(originals))
    for a, b in _list_candidates(index, threshold, found):
        if not found.is_joined(a, b) and compute_jaccard(shingles(a), shingles(b)) >= threshold:
            found.join(a, b)
            groups.join(originals[a], originals[b])
    return groups.to_lists()


def list_words(text: str) -> list[str]:
    """The words of a text as they are compared; a character of a script without spaces is a word."""
    normal = normalize_text(text)
    pieces = normal.split(" ")
    if not normal.isascii():
        pieces = _UNSPACED.sub(r" \g<0> ", normal).split()
    words = [word for piece in pieces if (word := piece.strip(_PUNCTUATION))]
    return words or [normal]


def count_shingles(text: str) -> Counter[tuple[str, ...]]:
    """The shingles of a text, three words each, and how often each occurs."""
    words = list_words(text)
    if len(words) <= SHINGLE_WORDS:
        return Counter([tuple(words)])
    return Counter(zip(*(words[i:] for i in range(SHINGLE_WORDS)), strict=False))


def compute_jaccard(a: Counter[tuple[str, ...]], b: Counter[tuple[str, ...]]) -> float:
    """The Jaccard similarity of two counts of shingles: those in common over those in either."""
    if len(a) > len(b):
        a, b = b, a
    common = sum(min(n, b[shingle]) for shingle, n in a.items() if shingle in b)
    return common / (a.total() + b.total() - common)


class _Groups:
    """Connected components (union-find); the root of a group is its first index."""

    def __init__(self, size: int) -> None:
        self._parents = list(range(size))

    def find(self, i: int) -> int:
        while self._parents[i] != i:
            self._parents[i] = self._parents[self._parents[i]]
            i = self._parents[i]
        return i

    def is_joined(self, a: int, b: int) -> bool:
        return self.find(a) == self.find(b)

    def join(self, a: int, b: int) -> None:
        a, b = sorted((self.find(a), self.find(b)))
        self._parents[b] = a

    def to_lists(self) -> list[list[int]]:
        members: dict[int, list[int]] = {}
        for i in range(len(self._parents)):
            members.setdefault(self.find(i), []).append(i)
        return [group for group in members.values() if len(group) > 1]


def _join_equal_texts(texts: Sequence[str], groups: _Groups) -> list[int]:
    """Joins texts with the same words; returns the first index of each of them."""
    first: dict[bytes, int] = {}
    for i, text in enumerate(texts):
        words = "\n".join(list_words(text)).encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(words, digest_size=16).digest()
        if first.setdefault(key, i) != i:
            groups.join(first[key], i)
    return list(first.values())


# --- shingles as numbers


@dataclass(frozen=True)
class _Index:
    """What the texts are compared by.

    Attributes:
        sizes: (texts,) shingles of each text.
        bitmaps: (texts, BITMAP_WORDS) one bit for each shingle of a text, which several may share.
        sketches: (texts, BANDS) hashes of MinHash values.
        tokens: (P,) the shingles of all prefixes, sorted; equal ones form a run.
        owners: (P,) the text of each of them.
    """

    sizes: Array
    bitmaps: Array
    sketches: Array
    tokens: Array
    owners: Array


@lru_cache(maxsize=1 << 18)
def _hash_word(word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") | 1


def _mix(values: Array) -> Array:
    """Scrambles 64-bit numbers (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash_chunks(texts: Sequence[str]) -> Iterator[tuple[int, Array, Array]]:
    """Yields the first text of a chunk, the hashes of its shingles text by text, and the shingles a text."""
    words: list[int] = []
    lengths: list[int] = []
    start = 0
    for i, text in enumerate(texts):
        hashes = list(map(_hash_word, list_words(text)))
        hashes += [0] * (SHINGLE_WORDS - len(hashes))
        words += hashes
        lengths.append(len(hashes))
        if len(words) >= CHUNK_WORDS or i == len(texts) - 1:
            yield start, *_hash_shingles(np.array(words, dtype=np.uint64), np.array(lengths))
            words, lengths, start = [], [], i + 1


def _hash_shingles(words: Array, lengths: Array) -> tuple[Array, Array]:
    count = len(words) - SHINGLE_WORDS + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for i in range(SHINGLE_WORDS):
        hashes = _mix(hashes * np.uint64(0x9E3779B97F4A7C15) + words[i : i + count])
    sizes = lengths - SHINGLE_WORDS + 1
    owners = np.repeat(np.arange(len(lengths)), lengths)
    is_inside = owners[:count] == owners[SHINGLE_WORDS - 1 :]
    hashes, owners = hashes[is_inside], owners[:count][is_inside]
    order = np.lexsort((hashes, owners))
    hashes, owners = hashes[order], owners[order]
    # A shingle that a text repeats is another one each time: (shingle, 0), (shingle, 1), ...
    is_first = np.ones(len(hashes), dtype=bool)
    is_first[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    places = np.arange(len(hashes))
    repeats = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return _mix(hashes + repeats.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)), sizes


def _build_index(texts: Sequence[str], threshold: float) -> _Index:
    counts = np.zeros(_COUNTERS, dtype=np.uint32)
    for _, hashes, _ in _hash_chunks(texts):
        cells, found = np.unique(hashes & np.uint64(_COUNTERS - 1), return_counts=True)
        counts[cells] += found.astype(np.uint32)
    total = len(texts)
    sizes = np.zeros(total, dtype=np.int64)
    bitmaps = np.zeros((total, BITMAP_WORDS), dtype=np.uint64)
    sketches = np.zeros((total, BANDS), dtype=np.uint64)
    tokens, owners = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    for start, hashes, lengths in _hash_chunks(texts):
        chunk = slice(start, start + len(lengths))
        texts_of = np.repeat(np.arange(len(lengths)), lengths)
        starts = np.cumsum(lengths) - lengths
        sizes[chunk] = lengths
        bits = hashes % np.uint64(BITMAP_WORDS * 64)
        np.bitwise_or.at(
            bitmaps[chunk],
            (texts_of, (bits >> np.uint64(6)).astype(np.int64)),
            np.uint64(1) << (bits & np.uint64(63)),
        )
        sketches[chunk] = _sketch(hashes, starts)
        order = np.lexsort((hashes, counts[hashes & np.uint64(_COUNTERS - 1)], texts_of))
        rank = np.arange(len(hashes)) - np.repeat(starts, lengths)
        is_prefix = rank < np.repeat(lengths - _ceil(threshold * lengths) + 1, lengths)
        tokens.append(hashes[order][is_prefix])
        owners.append(texts_of[is_prefix] + start)
    all_tokens, all_owners = np.concatenate(tokens), np.concatenate(owners)
    order = np.lexsort((all_owners, all_tokens))
    return _Index(sizes, bitmaps, sketches, all_tokens[order], all_owners[order])


def _ceil(values: Array) -> Array:
    return np.ceil(values - 1e-9).astype(np.int64)


def _sketch(hashes: Array, starts: Array) -> Array:
    """MinHash: for each band a hash of the smallest values of several permutations of the shingles."""
    bands = np.zeros((len(starts), BANDS), dtype=np.uint64)
    for band, value in itertools.product(range(BANDS), range(BAND_VALUES)):
        seed = np.uint64(0x632BE59BD9B4E019 * (band * BAND_VALUES + value + 1) % (1 << 64))
        smallest = np.minimum.reduceat(_mix(hashes ^ seed), starts)
        bands[:, band] = _mix(bands[:, band] * np.uint64(31) + smallest)
    return bands


# --- candidate pairs


def _list_candidates(index: _Index, threshold: float, groups: _Groups) -> Iterator[tuple[int, int]]:
    """Yields pairs of texts that may be similar; a pair can occur several times.

    Args:
        groups: what the caller has joined so far; it grows while the pairs are read.
    """
    if not len(index.tokens):
        return
    bounds = np.flatnonzero(index.tokens[1:] != index.tokens[:-1]) + 1
    starts, ends = np.concatenate([[0], bounds]), np.concatenate([bounds, [len(index.tokens)]])
    lengths = ends - starts
    for size in range(2, RUN_LIMIT + 1):  # all runs of one size at once
        chosen = starts[lengths == size]
        first, second = np.triu_indices(size, 1)
        step = max(1, 2_000_000 // len(first))
        for at in range(0, len(chosen), step):
            members = index.owners[chosen[at : at + step, None] + np.arange(size)]
            pairs = np.stack([members[:, first].ravel(), members[:, second].ravel()], axis=1)
            yield from _filter(index, np.unique(pairs, axis=0), threshold)
    done: set[bytes] = set()
    for start, end in zip(starts[lengths > RUN_LIMIT], ends[lengths > RUN_LIMIT], strict=True):
        members = index.owners[start:end]
        if len(set(map(groups.find, members.tolist()))) > 1:
            yield from _list_in_bands(index, members, threshold, done)


def _list_in_bands(
    index: _Index, members: Array, threshold: float, done: set[bytes]
) -> Iterator[tuple[int, int]]:
    """Pairs of many texts that share a shingle: those that share a band of MinHash values as well."""
    for band in range(BANDS):
        order = np.argsort(index.sketches[members, band], kind="stable")
        values = index.sketches[members, band][order]
        for bucket in np.split(members[order], np.flatnonzero(values[1:] != values[:-1]) + 1):
            key = hashlib.blake2b(bucket.tobytes(), digest_size=16).digest()
            if len(bucket) < 2 or key in done:
                continue
            done.add(key)
            if len(bucket) <= RUN_LIMIT:
                first, second = np.triu_indices(len(bucket), 1)
                pairs = np.sort(np.stack([bucket[first], bucket[second]], axis=1), axis=1)
                yield from _filter(index, pairs, threshold)
            else:
                for pivot in bucket[:: max(1, len(bucket) // PIVOT_LIMIT)]:
                    others = bucket[bucket != pivot]
                    pairs = np.stack([np.minimum(pivot, others), np.maximum(pivot, others)], axis=1)
                    yield from _filter(index, pairs, threshold)


def _filter(index: _Index, pairs: Array, threshold: float) -> Iterator[tuple[int, int]]:
    """Leaves out pairs whose sizes or bitmaps show that they are not similar."""
    sizes = index.sizes[pairs]
    pairs = pairs[sizes.min(axis=1) >= threshold * sizes.max(axis=1) - 1e-9]
    if len(pairs):
        a, b = index.bitmaps[pairs[:, 0]], index.bitmaps[pairs[:, 1]]
        differences = np.bitwise_count(a ^ b).sum(axis=1)
        # In common are at most half of what the sizes leave beside the bits in which the two differ.
        total = index.sizes[pairs].sum(axis=1)
        common = (total - differences.astype(np.int64)) / 2
        pairs = pairs[common >= threshold / (1 + threshold) * total - 1e-6]
    yield from map(tuple, pairs.tolist())
