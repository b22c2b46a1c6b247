from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from core.retrieve.chunks import cut_chunks
from core.retrieve.documents import find_headings

TEXTS = st.lists(
    st.sampled_from(
        [
            "# Ferries\n",
            "渡轮每天七点离开岛屿。",
            "A boat leaves. ",
            "\n\n",
            "\n",
            " ",
            "\t",
            "x" * 90,
            "é🙂",
            "\r\n",
        ]
    ),
    max_size=40,
).map("".join)


@settings(deadline=None, max_examples=150)
@given(text=TEXTS, size=st.integers(2, 120), share=st.floats(0, 0.5))
def test_every_character_is_in_a_chunk_of_bounded_size(text: str, size: int, share: float) -> None:
    chunks = list(cut_chunks(text, find_headings(text), size, int(size * share)))
    covered = {i for c in chunks for i in range(c.start, c.end)}
    assert {i for i, character in enumerate(text) if not character.isspace()} <= covered
    assert all(0 < c.end - c.start <= size and text[c.start : c.end].strip() for c in chunks)
    assert all(a.start < b.start and a.end < b.end for a, b in zip(chunks, chunks[1:]))


def test_a_chunk_has_the_nearest_heading_and_ends_at_the_next() -> None:
    text = "# Ferries\n\n" + "They leave at seven. " * 8 + "\n\n# Tickets\n\n" + "Dogs travel free. " * 8
    chunks = list(cut_chunks(text, find_headings(text), 120, 40))
    assert [c.section for c in chunks] == ["Ferries", "Ferries", "Tickets", "Tickets"]
    tickets = text.index("# Tickets")
    assert tickets in [c.start for c in chunks] and tickets in [c.end for c in chunks]


def test_neighbours_overlap_by_whole_sentences() -> None:
    text = "".join(f"Sentence number {i} is here. " for i in range(30))
    chunks = list(cut_chunks(text, (), 200, 60))
    for before, after in zip(chunks, chunks[1:]):
        assert 0 < before.end - after.start <= 60
        assert text[after.start :].startswith("Sentence")


def test_a_long_line_and_chinese_are_cut_at_the_size() -> None:
    assert [(c.start, c.end) for c in cut_chunks("x" * 250, (), 100, 20)] == [(0, 100), (80, 180), (160, 250)]
    chinese = "渡轮每天早上七点离开岛屿" * 20
    assert max(c.end - c.start for c in cut_chunks(chinese, (), 100, 20)) == 100
