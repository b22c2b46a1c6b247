"""Encoders of texts as vectors: the static embeddings of wordllama, or any model of sentence-transformers.

Both are optional packages, imported when they are used. Nothing here downloads a model, except
sentence-transformers for a Hub id.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import itertools
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from core.errors import SpecError
from core.spec.retrieval import AUTO, OFF

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORDLLAMA, SENTENCE_TRANSFORMERS = "wordllama", "sentence-transformers"
BATCH = 256  # texts that are encoded at once

State = Mapping[str, "NDArray[np.float32]"]


class Encoder(Protocol):
    """Turns texts into vectors.

    Attributes:
        name: what the index keeps of it: package, version, and the model.
    """

    name: str

    def fit(self, texts: Iterable[str]) -> State:
        """What `encode` needs to know of all chunks of an index: arrays by name; may be empty."""

    def encode(self, texts: Sequence[str], state: State) -> NDArray[np.float32]:
        """The vectors of some texts, (len(texts), D), of length 1; a text without content has zeros."""


class StaticEncoder:
    """Static embeddings of tokens: a text is the weighted mean of its tokens, minus the mean of all chunks.

        v(text) = Σ_t weight(t) · E[t]          weight(t) = sqrt(idf(t)), t over the tokens of the text
        result  = v / |v|  -  mean over the chunks of v / |v|,     scaled to length 1

    Rare tokens name what a text is about, and the mean is what all texts of an index share. On our
    paraphrases (`benchmarks/evidence.py`) this finds more than the plain mean of the tokens. After Arora
    et al., "A Simple but Tough-to-Beat Baseline for Sentence Embeddings", 2017.

    Args:
        tokenizer: of the tokenizers library, with one row of the embeddings per token.
        embeddings: E, (V, D).
    """

    def __init__(self, name: str, tokenizer: Any, embeddings: NDArray[np.float32]) -> None:
        self.name = name
        self._tokenizer, self._embeddings = tokenizer, embeddings

    def fit(self, texts: Iterable[str]) -> State:
        """The weights of the tokens, (V,), and the mean of the chunks, (D,)."""
        holders = np.zeros(len(self._embeddings), np.int64)
        count, total = 0, np.zeros(self._embeddings.shape[1], np.float64)
        batches = [self._tokenize(batch) for batch in _batch(texts)]
        for tokens in batches:
            for ids in tokens:
                holders[np.unique(ids)] += 1
            count += len(tokens)
        weights = np.sqrt(np.log1p((count + 0.5) / (holders + 0.5))).astype(np.float32)
        for tokens in batches:
            total += self._pool(tokens, weights).sum(axis=0, dtype=np.float64)
        return {"token_weights": weights, "mean": (total / max(1, count)).astype(np.float32)}

    def encode(self, texts: Sequence[str], state: State) -> NDArray[np.float32]:
        """The vectors of some texts."""
        if not texts:
            return np.zeros((0, self._embeddings.shape[1]), np.float32)
        pooled = self._pool(self._tokenize(texts), state["token_weights"])
        is_empty = ~pooled.any(axis=1, keepdims=True)
        return normalise_rows(np.where(is_empty, 0, pooled - state["mean"]).astype(np.float32))

    def _tokenize(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            np.array([i for i, m in zip(e.ids, e.attention_mask, strict=True) if m], np.int32)
            for e in encodings
        ]

    def _pool(self, tokens: Sequence[NDArray[np.int32]], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = [weights[ids] @ self._embeddings[ids] for ids in tokens]
        return normalise_rows(np.stack(rows).astype(np.float32))


@dataclass
class SentenceEncoder:
    """A model of sentence-transformers; `embed` returns one row per text."""

    name: str
    embed: Any

    def fit(self, texts: Iterable[str]) -> State:
        """Needs to know nothing of the chunks."""
        return {}

    def encode(self, texts: Sequence[str], state: State) -> NDArray[np.float32]:
        """The vectors of some texts."""
        vectors = np.asarray(self.embed(list(texts)), np.float32)
        has_content = np.array([[bool(text.strip())] for text in texts])
        return normalise_rows(np.where(has_content, vectors, 0).astype(np.float32))


def normalise_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit


def _batch(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported.

    Every page that opens asks. It is looked for again once a folder of packages has changed.
    """
    return _find(package.replace("-", "_"), tuple(_read_change(folder) for folder in sys.path))


@functools.lru_cache(maxsize=64)
def _find(module: str, changes: tuple[int, ...]) -> bool:
    importlib.invalidate_caches()
    return importlib.util.find_spec(module) is not None


def _read_change(folder: str) -> int:
    """When the names in a folder changed, in ns; 0 where it is none."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def find_version(package: str) -> str:
    """The version of an installed package; "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def name_encoder(choice: str) -> str:
    """What an index keeps of the encoder that a setting chooses; "" for none. Loads nothing.

    Args:
        choice: "auto", "off", or a folder or Hub id.

    Raises:
        SpecError: the package that it needs is not installed, or the folder does not exist.
    """
    if choice in ("", OFF):
        return ""
    if choice == AUTO:
        version = find_version(WORDLLAMA)
        return f"{WORDLLAMA} {version}" if version else ""
    version = find_version(SENTENCE_TRANSFORMERS)
    if not version:
        raise SpecError(
            f"The encoder {choice!r} needs the package sentence-transformers, which is not installed.",
            "Install it with `pip install sentence-transformers`, or choose auto or off.",
        ).at("encoder")
    if choice.startswith((".", "/", "~")) and not Path(choice).expanduser().is_dir():
        raise SpecError(f"The folder of the encoder, {choice!r}, does not exist.", "Give another one.").at(
            "encoder"
        )
    return f"{SENTENCE_TRANSFORMERS} {version} {choice}"


def load_encoder(choice: str) -> Encoder | None:
    """Loads the encoder that a setting chooses; None for none.

    Raises:
        SpecError: as `name_encoder`, or it cannot be loaded.
    """
    name = name_encoder(choice)
    if not name:
        return None
    importlib.invalidate_caches()  # it may have been installed since the start
    try:
        return _load_wordllama(name) if choice == AUTO else _load_sentence_transformer(name, choice)
    except Exception as e:  # noqa: BLE001 (of other libraries, of many classes)
        raise SpecError(
            f"The encoder {name} cannot be loaded: {type(e).__name__}: {e}", 'Choose another one, or "off".'
        ).at("encoder") from e


def _load_wordllama(name: str) -> StaticEncoder:
    with _protect_root_logger():
        package: Any = importlib.import_module(WORDLLAMA)
    folder = Path(package.__file__).parent  # the weights lie in the package; nothing is downloaded
    model = package.WordLlama.load(cache_dir=folder, disable_download=True)
    return StaticEncoder(name, model.tokenizer, model.embedding)


def _load_sentence_transformer(name: str, choice: str) -> SentenceEncoder:
    package: Any = importlib.import_module("sentence_transformers")
    path = Path(choice).expanduser()
    model = package.SentenceTransformer(
        str(path) if path.is_dir() else choice, device="cpu", trust_remote_code=False
    )

    def embed(texts: list[str]) -> Any:
        return model.encode(texts, batch_size=64, show_progress_bar=False, convert_to_numpy=True)

    return SentenceEncoder(name, embed)


@contextmanager
def _protect_root_logger() -> Iterator[None]:
    """Keeps the root logger as it is: wordllama 0.4 configures it at its import."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
