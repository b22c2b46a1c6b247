"""Settings of retrieval (`RetrievalSettings`): how documents are cut, indexed and searched."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import SpecError
from core.spec.settings import Settings, setting

AUTO, OFF = "auto", "off"
VECTOR_INDEXES = (AUTO, "exact", "faiss")
PASSAGE_LIMIT = 50  # passages of one search
QUERY_LIMIT = 20_000  # characters of a question
# Measured on the sample data, with words alone and with wordllama: of 180 questions that the papers answer,
# all keep a passage; of 60 questions about other things, 94 % and 88 % find nothing; and 83 % of the passages
# that answer in other words (`benchmarks/evidence.py`) stay above it with wordllama. Among 100,000 chunks the
# cosine of some chunk always passes it: there, only words alone find nothing.
THRESHOLD = 0.1


@dataclass(frozen=True)
class RetrievalSettings(Settings):
    """How documents are cut into chunks, indexed and searched."""

    chunk_size: int = setting(
        600, "Largest size of a chunk, in characters.", low=100, high=8000, label="Chunk size (characters)"
    )
    overlap: int = setting(
        100,
        "Characters at the end of a chunk that the next one repeats; at most half of a chunk.",
        low=0,
        high=4000,
        label="Overlap (characters)",
    )
    passages: int = setting(5, "Largest number of passages that a search returns.", low=1, high=PASSAGE_LIMIT)
    threshold: float = setting(
        THRESHOLD,
        "Passages with a lower score are left out, so that a search may find nothing.",
        low=0.0,
        high=2.0,
    )
    encoder: str = setting(
        AUTO,
        'Embeddings beside words: "auto" (static embeddings where they are installed), "off", or a folder or '
        "Hub id of sentence-transformers.",
        high=400,
    )
    encoder_weight: float = setting(
        0.4, "Weight of the cosine of the embeddings beside the score of the words.", low=0.0, high=10.0
    )
    vector_index: str = setting(
        AUTO,
        'How embeddings are searched: "exact", "faiss", or "auto" (FAISS above a million chunks).',
        choices=VECTOR_INDEXES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if 2 * self.overlap > self.chunk_size:
            raise SpecError(
                f"Overlap must be at most half of the chunk size ({self.chunk_size // 2} characters), "
                f"got {self.overlap}.",
                "Lower the overlap or raise the chunk size.",
            ).at("overlap")
