from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from core.retrieve.documents import TextDocument
from core.retrieve.encoders import WORDLLAMA, StaticEncoder, is_installed, load_encoder, name_encoder
from core.retrieve.index import ChunkIndex, Searcher, build_index, load_index, save_index
from core.retrieve.vectors import FAISS, ExactVectors, FaissVectors
from core.retrieve.word_index import K1, B, build_word_index
from core.spec.retrieval import RetrievalSettings

DOCUMENTS = [
    TextDocument("ferries.md", "# Ferries\n\nThe boat to the island leaves at seven.", [(0, "Ferries")]),
    TextDocument("parts.txt", "Part AX-4711-B: tighten it with 34 Nm."),
    TextDocument("parts.txt", "Part AX-4712-B replaces AX-4711-B? No, it replaces AX-9."),
    TextDocument("时刻.txt", "渡轮每天早上七点离开岛屿。🙂 Bis später."),
]
SETTINGS = RetrievalSettings(encoder="off")


@pytest.fixture(scope="module")
def index() -> ChunkIndex:
    return build_index(DOCUMENTS, SETTINGS)


def test_the_score_of_words_is_bm25_over_the_best_possible() -> None:
    found = build_word_index(["red lamp", "red red bell in hall", "blue"])
    mean = (2 + 5 + 1) / 3
    idf = {"red": math.log1p(3 / 2), "lamp": math.log1p(3)}
    unknown = math.log1p(3 / 0.5)

    def part(count: int, length: int) -> float:
        return count / (count + K1 * (1 - B + B * length / mean))

    expected = [idf["red"] * part(1, 2) + idf["lamp"] * part(1, 2), idf["red"] * part(2, 5), 0.0]
    best = idf["red"] + idf["lamp"] + unknown
    assert found.score(["red", "lamp", "nowhere"]).tolist() == pytest.approx([e / best for e in expected])


def test_passages_are_exact_slices_with_marks(index: ChunkIndex) -> None:
    for query, document in (("tighten AX-4711-B", 1), ("boat island", 0), ("渡轮几点离开", 3), ("später", 3)):
        best = Searcher(index, SETTINGS, "d", "Dataset").search(query, 3, 0.0)[0]
        whole = DOCUMENTS[document]
        assert best.document == whole.name and whole.text[best.start : best.end] == best.text
        assert best.words and all(best.text[a:b].strip() for a, b in best.marks)
    assert Searcher(index, SETTINGS).search("boat", 1, 0.0)[0].section == "Ferries"


def test_nothing_found_is_an_empty_list(index: ChunkIndex) -> None:
    searcher = Searcher(index, SETTINGS)
    assert searcher.search("quantum chromodynamics", 5, 0.0) == []
    assert searcher.search("Where is the moon?", 5, SETTINGS.threshold) == []


def test_equal_scores_are_in_the_order_of_the_documents() -> None:
    same = [TextDocument(f"{i}", "red lamp") for i in range(30)]
    searcher = Searcher(build_index(same, SETTINGS), SETTINGS)
    assert [p.document for p in searcher.search("lamp", 4, 0.0)] == ["0", "1", "2", "3"]


def test_a_damaged_file_counts_as_missing(tmp_path: Path, index: ChunkIndex) -> None:
    file = tmp_path / "words.index"
    save_index(file, index)
    again = load_index(file)
    assert again is not None
    for query in ("boat", "AX-4711-B"):
        assert Searcher(again, SETTINGS).search(query, 3, 0.0) == Searcher(index, SETTINGS).search(
            query, 3, 0.0
        )
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert load_index(file) is None
    file.write_bytes(data[:20])
    assert load_index(file) is None and load_index(tmp_path / "other") is None


class Tokenizer:
    """Words as tokens, with the interface of the tokenizers library."""

    words = ["car", "automobile", "boat", "ship", "red"]

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[object]:
        found = [[self.words.index(w) for w in text.lower().split() if w in self.words] for text in texts]
        return [type("Encoding", (), {"ids": ids, "attention_mask": [1] * len(ids)})() for ids in found]


def test_static_embeddings_find_other_words_and_are_kept(tmp_path: Path) -> None:
    rows = np.array([[1, 0, 0.1], [1, 0, 0], [0, 1, 0], [0, 1, 0.1], [0.1, 0.1, 1]], np.float32)
    encoder = StaticEncoder("tiny", Tokenizer(), rows)
    texts = [TextDocument("a", "red automobile"), TextDocument("b", "red ship"), TextDocument("c", "red")]
    made = build_index(texts, SETTINGS, encoder)
    save_index(tmp_path / "vectors.index", made)
    again = load_index(tmp_path / "vectors.index")
    assert again is not None and again.encoder == "tiny"
    settings = RetrievalSettings(encoder_weight=1.0)
    for found in (made, again):
        searcher = Searcher(found, settings, encoder=encoder)
        assert searcher.search("car", 1, 0.0)[0].document == "a"
        assert searcher.search("boat", 1, 0.0)[0].document == "b"
        assert searcher.search("", 1, 0.0) == []
    assert np.linalg.norm(encoder.encode(["red car", "nothing"], made.state), axis=1) == pytest.approx([1, 0])


def test_a_package_is_known_as_soon_as_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("brand-new-package")
    (tmp_path / "brand_new_package.py").write_text("")
    assert is_installed("brand-new-package")


@pytest.mark.skipif(not is_installed(WORDLLAMA), reason="wordllama is not installed")
def test_wordllama_joins_the_score_of_words() -> None:
    encoder = load_encoder("auto")
    assert encoder is not None and encoder.name == name_encoder("auto")
    texts = [
        TextDocument("a", "The physician prescribes rest."),
        TextDocument("b", "The ferry departs at dawn."),
    ]
    searcher = Searcher(
        build_index(texts, RetrievalSettings(), encoder), RetrievalSettings(), encoder=encoder
    )
    assert searcher.search("When does the boat leave?", 1, 0.0)[0].document == "b"


@pytest.mark.skipif(not is_installed(FAISS), reason="faiss-cpu is not installed")
def test_faiss_finds_what_the_exact_search_finds() -> None:
    vectors = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact, faiss = ExactVectors(vectors).score(vectors[7]), FaissVectors(vectors).score(vectors[7])
    assert np.argsort(-exact)[:20].tolist() == np.argsort(-faiss)[:20].tolist()


@pytest.mark.skipif(
    not is_installed("sentence-transformers"), reason="sentence-transformers is not installed"
)
def test_a_folder_of_sentence_transformers_encodes(tiny_base: Path) -> None:
    encoder = load_encoder(str(tiny_base))
    assert encoder is not None
    assert np.linalg.norm(encoder.encode(["The lamp", " "], {}), axis=1) == pytest.approx([1, 0], abs=1e-4)


def test_the_hand_written_paraphrases_share_no_content_word() -> None:
    from benchmarks.evidence import PARAPHRASES, find_shared_words, read_paraphrases

    pairs = read_paraphrases()
    assert len({q for _, q in pairs}) == len(PARAPHRASES.read_text("utf-8").splitlines()) >= 100
    assert find_shared_words("The ferries leave.", "When does the ferry go?") == {"ferry"}
    assert find_shared_words("A polished table", "How is tables polish made?") == {"tables", "polish"}
    assert json.loads(PARAPHRASES.read_text("utf-8").splitlines()[0])["question"]
