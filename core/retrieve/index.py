"""The index of a dataset's chunks: how it is built, kept in one file, and searched.

    documents ─ chunks ─┬─ terms ─ word_index ─┐
                        └─ encoder ─ vectors ──┴─ score ─ threshold ─> passages

    score = words                                                      without an encoder
    score = (words if words > NOISE) + encoder_weight · max(0, cosine)  with one

Where a passage says the same in other words, some other chunk shares a word with the question by chance, and
that word must not count more than the cosine. A higher NOISE would cost questions whose words the passage
holds: `benchmarks/evidence.py` measures both.

The file holds everything but FAISS's lists. A checksum over all of it is verified when it is loaded, and a
damaged file counts as missing. Equal scores are in the order of the chunks, so a search is deterministic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.retrieve.chunks import cut_chunks
from core.retrieve.documents import TextDocument
from core.retrieve.encoders import Encoder, State
from core.retrieve.function_words import drop_function_words
from core.retrieve.passages import Passage
from core.retrieve.terms import find_matches, list_terms, normalise
from core.retrieve.vectors import ExactVectors, FaissVectors, chooses_faiss
from core.retrieve.word_index import WordIndex, WordIndexBuilder
from core.spec.retrieval import RetrievalSettings
from core.store.files import atomic_write

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1  # of the file, the chunks and the terms
ENCODE_BLOCK = 2048  # chunks that are encoded between two reports
REPORT_STEP = 500  # chunks between two reports
NOISE = 0.18  # a score of words that a chunk about something else reaches, too
STATE = "state."  # before the names of the encoder's arrays in the file

Step = Callable[[str, int, int], None]  # what it does now, done, total


@dataclass(frozen=True)
class ChunkTable:
    """The chunks of all documents, as arrays over N chunks.

    Attributes:
        text: the documents behind each other, in UTF-8.
        spans: (N, 4) of every chunk its first byte in `text` and the one behind its last, and the same of its
            characters in its document.
        names: (N, 2) of every chunk its document and its section, as numbers in `strings`.
        strings: the names of documents and sections.
    """

    text: NDArray[np.uint8]
    spans: NDArray[np.int64]
    names: NDArray[np.uint32]
    strings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.spans)

    def read(self, chunk: int) -> str:
        """The text of a chunk."""
        start, end = self.spans[chunk, :2]
        return bytes(self.text[start:end]).decode()

    def section(self, chunk: int) -> str:
        """The section of a chunk."""
        return self.strings[int(self.names[chunk, 1])]


@dataclass(frozen=True)
class ChunkIndex:
    """An index of chunks.

    Attributes:
        chunks, words: what is searched.
        vectors: (N, D) of the encoder, or None without one.
        encoder: its name, or "".
        state: what the encoder knows of the chunks.
    """

    chunks: ChunkTable
    words: WordIndex
    vectors: NDArray[np.float32] | None = None
    encoder: str = ""
    state: State = field(default_factory=dict)


def build_index(
    documents: Iterable[TextDocument],
    settings: RetrievalSettings,
    encoder: Encoder | None = None,
    step: Step = lambda text, done, total: None,
    total: int = 0,
) -> ChunkIndex:
    """Cuts documents into chunks and indexes them.

    Args:
        step: receives the progress; what it raises ends the work.
        total: bytes of all documents, about, for the progress.
    """
    builder, words, count = _TableBuilder(), WordIndexBuilder(), 0
    for document in documents:
        chunks = cut_chunks(document.text, document.headings, settings.chunk_size, settings.overlap)
        for text, section in builder.add(document, chunks):
            words.add(_add_section(text, section))
            count += 1
            if count % REPORT_STEP == 0:
                step(f"Indexing: {count:,} chunks", min(builder.bytes, total), total)
    table = builder.finish()
    vectors: NDArray[np.float32] | None = None
    state: State = {}
    if encoder and count:
        vectors, state = _encode(table, encoder, step)
    step("Writing the index", count, count)
    return ChunkIndex(table, words.finish(), vectors, encoder.name if encoder and count else "", state)


def _add_section(text: str, section: str) -> str:
    """A chunk with its heading, where it does not begin with it."""
    return text if not section or section in text else f"{section}\n{text}"


def _encode(table: ChunkTable, encoder: Encoder, step: Step) -> tuple[NDArray[np.float32], State]:
    """The vectors of all chunks, and what the encoder knows of them."""

    def read(chunks: range, text: str) -> Iterator[str]:
        for chunk in chunks:
            if chunk % REPORT_STEP == 0:
                step(text, chunk, len(table))
            yield _add_section(table.read(chunk), table.section(chunk))

    state = encoder.fit(read(range(len(table)), "Counting tokens"))
    blocks = []
    for start in range(0, len(table), ENCODE_BLOCK):
        chunks = range(start, min(start + ENCODE_BLOCK, len(table)))
        blocks.append(encoder.encode(list(read(chunks, "Encoding the chunks")), state))
    return np.concatenate(blocks), state


class _TableBuilder:
    """Collects the chunks of one document after the other."""

    def __init__(self) -> None:
        self._texts: list[bytes] = []
        self._spans: list[tuple[int, int, int, int]] = []
        self._names: list[tuple[int, int]] = []
        self._strings: dict[str, int] = {}
        self.bytes = 0

    def add(self, document: TextDocument, chunks: Iterable[Any]) -> Iterable[tuple[str, str]]:
        """Adds a document; yields the text and the section of each chunk."""
        text, is_ascii = document.text, document.text.isascii()
        name = self._number(document.name)
        character = byte = 0  # the same place of the text
        for chunk in chunks:
            byte += _count_bytes(text[character : chunk.start], is_ascii)
            character = chunk.start
            piece = text[chunk.start : chunk.end]
            end = byte + _count_bytes(piece, is_ascii)
            self._spans.append((self.bytes + byte, self.bytes + end, chunk.start, chunk.end))
            self._names.append((name, self._number(chunk.section)))
            yield piece, chunk.section
        whole = text.encode("utf-8", "replace")
        self._texts.append(whole)
        self.bytes += len(whole)

    def _number(self, string: str) -> int:
        return self._strings.setdefault(string, len(self._strings))

    def finish(self) -> ChunkTable:
        return ChunkTable(
            np.frombuffer(b"".join(self._texts), np.uint8),
            np.array(self._spans, np.int64).reshape(-1, 4),
            np.array(self._names, np.uint32).reshape(-1, 2),
            tuple(self._strings),
        )


def _count_bytes(text: str, is_ascii: bool) -> int:
    return len(text) if is_ascii else len(text.encode("utf-8", "replace"))


# ---------------------------------------------------------------- searching


class Searcher:
    """Searches one index.

    Args:
        dataset, dataset_name: what its passages belong to.
        encoder: of the index; None for an index of words alone.
    """

    def __init__(
        self,
        index: ChunkIndex,
        settings: RetrievalSettings,
        dataset: str = "",
        dataset_name: str = "",
        encoder: Encoder | None = None,
    ) -> None:
        self.index, self._settings = index, settings
        self.dataset, self.dataset_name, self._encoder = dataset, dataset_name, encoder
        self._vectors: ExactVectors | FaissVectors | None = None
        if index.vectors is not None and encoder is not None:
            has_faiss = chooses_faiss(settings.vector_index, len(index.chunks))
            self._vectors = FaissVectors(index.vectors) if has_faiss else ExactVectors(index.vectors)

    def score(self, query: str) -> NDArray[np.float32]:
        """The scores of all chunks, (N,)."""
        scores = self.index.words.score(drop_function_words(list_terms(query)))
        if self._vectors is None or self._encoder is None:
            return scores
        cosines = self._vectors.score(self._encoder.encode([query], self.index.state)[0])
        weight = np.float32(self._settings.encoder_weight)
        counted = np.where(scores > np.float32(NOISE), scores, np.float32(0))
        return counted + weight * np.maximum(cosines, 0)

    def search(self, query: str, count: int, threshold: float) -> list[Passage]:
        """The best passages for a question, the best first; empty where none reaches the threshold."""
        if not len(self.index.chunks):
            return []
        scores = self.score(query)
        best = _take_best(scores, count)
        terms = set(drop_function_words(list_terms(query)))
        return [self._make(int(c), float(scores[c]), terms) for c in best if scores[c] > max(threshold, 0.0)]

    def _make(self, chunk: int, score: float, terms: set[str]) -> Passage:
        table = self.index.chunks
        text = table.read(chunk)
        document, section = (table.strings[n] for n in table.names[chunk])
        marks = find_matches(text, terms)
        words = dict.fromkeys(normalise(text[start:end]) for start, end in marks)
        start, end = (int(n) for n in table.spans[chunk, 2:])
        return Passage(
            dataset=self.dataset,
            dataset_name=self.dataset_name,
            document=document,
            section=section,
            start=start,
            end=end,
            text=text,
            score=round(score, 6),
            words=tuple(words),
            marks=tuple(marks),
            chunk=chunk,
        )


def _take_best(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The chunks with the highest scores, the best first; of equal ones the first."""
    if len(scores) > count:
        lowest = np.partition(scores, len(scores) - count)[len(scores) - count]
        chunks = np.flatnonzero(scores >= lowest)
    else:
        chunks = np.arange(len(scores))
    return chunks[np.lexsort((chunks, -scores[chunks]))][:count]


# ---------------------------------------------------------------- the file


def save_index(path: Path, index: ChunkIndex) -> None:
    """Writes an index as one file, completely or not at all.

    Raises:
        StorageError
    """
    arrays: dict[str, NDArray[Any]] = {
        "text": index.chunks.text,
        "spans": index.chunks.spans,
        "names": index.chunks.names,
        "strings": _pack(index.chunks.strings),
        "terms": _pack(tuple(index.words.numbers)),
        "starts": index.words.starts,
        "chunks": index.words.chunks,
        "weights": index.words.weights,
    }
    if index.vectors is not None:
        arrays["vectors"] = index.vectors.astype(np.float16)
    arrays |= {f"{STATE}{name}": array for name, array in index.state.items()}
    heads = [{"name": name, "type": str(a.dtype), "shape": a.shape} for name, a in arrays.items()]
    head = {"version": VERSION, "encoder": index.encoder, "arrays": heads}
    sha = hashlib.sha256()
    with atomic_write(path) as f:
        f.write(bytes(32))  # the place of the checksum
        line = json.dumps(head).encode() + b"\n"
        for part in (line, *(np.ascontiguousarray(a).data for a in arrays.values())):
            block = memoryview(part).cast("B") if len(part) else b""  # type: ignore[arg-type]
            sha.update(block)
            f.write(block)
        f.seek(0)
        f.write(sha.digest())


def load_index(path: Path) -> ChunkIndex | None:
    """Reads an index; None where the file is missing, damaged, or of another version."""
    try:
        data = memoryview(path.read_bytes())
        if len(data) < 32 or hashlib.sha256(data[32:]).digest() != bytes(data[:32]):
            return None
        line = bytes(data[32 : 32 + (1 << 20)]).partition(b"\n")[0]
        head = json.loads(line)
        if head["version"] != VERSION:
            return None
        arrays, at = {}, 32 + len(line) + 1
        for one in head["arrays"]:
            count = int(np.prod(one["shape"], dtype=np.int64))
            array = np.frombuffer(data, one["type"], count, at) if count else np.zeros(0, one["type"])
            arrays[one["name"]] = array.reshape(one["shape"])
            at += array.nbytes
    except (OSError, ValueError, TypeError, LookupError):
        return None
    table = ChunkTable(arrays["text"], arrays["spans"], arrays["names"], _unpack(arrays["strings"]))
    numbers = {term: number for number, term in enumerate(_unpack(arrays["terms"]))}
    words = WordIndex(numbers, arrays["starts"], arrays["chunks"], arrays["weights"], len(table))
    vectors = arrays["vectors"].astype(np.float32) if "vectors" in arrays else None
    state = {name.removeprefix(STATE): a for name, a in arrays.items() if name.startswith(STATE)}
    return ChunkIndex(table, words, vectors, head["encoder"], state)


def _pack(strings: Sequence[str]) -> NDArray[np.uint8]:
    """Strings as bytes, each ended by a zero, which no string holds."""
    joined = "".join(f"{string}\0" for string in (s.replace("\0", " ") for s in strings))
    return np.frombuffer(joined.encode("utf-8", "replace"), np.uint8)


def _unpack(data: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(bytes(data).decode().split("\0")[:-1])
