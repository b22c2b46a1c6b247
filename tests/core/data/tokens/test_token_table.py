"""Sequences in flat arrays give the rows that lists give, in memory and from mapped files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from core.data.tokens import token_table
from core.data.tokens.encoded_sequence import EncodedSequence
from core.data.tokens.packing import build_rows
from core.data.tokens.token_table import TableWriter, TokenTable, build_table_rows
from core.data.tokens.truncation import Cut
from core.errors import SpecError


def draw_sequences(count: int) -> list[EncodedSequence]:
    rng = random.Random(4)
    made = []
    for _ in range(count):
        size = rng.randint(2, 30)
        mask = [rng.randint(0, 1) for _ in range(size)] if rng.random() < 0.8 else [1] + [0] * (size - 1)
        cut = Cut(rng.randint(0, 2), rng.randint(0, 1), 0)
        made.append(EncodedSequence([rng.randint(0, 60_000) for _ in range(size)], mask, cut))
    return made


def write(sequences: list[EncodedSequence], folder: Path | None = None) -> TokenTable:
    writer = TableWriter(folder)
    for sequence in sequences:
        writer.append(sequence)
    return writer.finish()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("in_files", [True, False])
def test_a_table_gives_the_rows_and_figures_of_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, in_files: bool
) -> None:
    monkeypatch.setattr(token_table, "BLOCK_TOKENS", 100)  # many blocks
    sequences = draw_sequences(200)
    table = write(sequences, tmp_path if in_files else None)
    assert list(table) == sequences and table[3:5] == sequences[3:5]
    order = list(range(200))
    random.Random(1).shuffle(order)
    rows, stats = build_table_rows(table, order, 32, packed)
    expected, expected_stats = build_rows([sequences[i] for i in order], 32, packed)
    assert [*rows] == expected and stats == expected_stats
    assert rows.lengths == [len(r["input_ids"]) for r in expected]


def test_a_table_without_a_trained_token_is_refused() -> None:
    for sequences in ([], [EncodedSequence([4, 5], [1, 0])]):
        with pytest.raises(SpecError, match="no tokens to train on"):
            build_table_rows(write(sequences), range(len(sequences)), 32, True)


def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write(draw_sequences(5), tmp_path)
    (tmp_path / "ids.bin").write_bytes((tmp_path / "ids.bin").read_bytes()[:-4])
    with pytest.raises(ValueError, match="do not belong together"):
        TokenTable.open(tmp_path)
