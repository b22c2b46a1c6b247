"""The nearest vectors: exact in numpy, or by FAISS for many chunks.

Below a million chunks one matrix product finds all cosines within some milliseconds, so FAISS pays only
above. With FAISS, only the nearest chunks get a cosine; for the others it counts as 0, as for chunks without
anything in common.

Letters: N chunks, D dimensions.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import SpecError
from core.retrieve.encoders import is_installed
from core.spec.retrieval import AUTO

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAISS = "faiss"
FAISS_CHUNKS = 1_000_000  # "auto" takes FAISS above
FLAT_CHUNKS = 50_000  # FAISS searches all vectors of fewer chunks
NEAREST = 200  # chunks that FAISS finds
SAMPLE = 256  # chunks per list that its lists are trained on


def chooses_faiss(choice: str, chunks: int) -> bool:
    """Whether the setting and the number of chunks choose FAISS.

    Raises:
        SpecError: it is not installed.
    """
    if choice != FAISS and not (choice == AUTO and chunks > FAISS_CHUNKS and is_installed(FAISS)):
        return False
    if not is_installed(FAISS):
        raise SpecError(
            "The vector index faiss needs the package faiss-cpu, which is not installed.",
            'Install it with `pip install faiss-cpu`, or choose "exact".',
        ).at("vector_index")
    return True


class ExactVectors:
    """All cosines by one matrix product.

    Args:
        vectors: (N, D), each of length 1 or 0.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors

    def score(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """The cosines of all chunks with a query (D,), as (N,)."""
        cosines: NDArray[np.float32] = self._vectors @ query
        return cosines


class FaissVectors:
    """The nearest vectors by FAISS: all of few chunks, inverted lists of many.

    Args:
        vectors: (N, D), each of length 1 or 0.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        faiss: Any = importlib.import_module(FAISS)
        count, width = vectors.shape
        self._count = count
        self._index = faiss.IndexFlatIP(width)
        if count > FLAT_CHUNKS:
            lists = int(4 * math.sqrt(count))
            self._index = faiss.IndexIVFFlat(self._index, width, lists, faiss.METRIC_INNER_PRODUCT)
            step = max(1, count // (lists * SAMPLE))
            self._index.train(np.ascontiguousarray(vectors[::step]))  # its k-means has a fixed seed
            self._index.nprobe = max(8, lists // 16)
        self._index.add(vectors)

    def score(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """The cosines of the nearest chunks with a query (D,), as (N,); 0 for all others."""
        cosines, numbers = self._index.search(query[None], min(NEAREST, self._count))
        scores = np.zeros(self._count, np.float32)
        found = numbers[0] >= 0
        scores[numbers[0][found]] = cosines[0][found]
        return scores
