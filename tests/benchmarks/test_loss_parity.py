"""A run's losses are those of plain transformers and peft in fp32, on the same batches."""

from __future__ import annotations

import pytest

from benchmarks.loss_parity import compare_losses


@pytest.mark.parametrize("kind", ["task", "domain"])
def test_losses_stay_close_to_plain_transformers_and_peft(kind: str) -> None:
    found = compare_losses("embedded", kind, steps=4, rows=1, length=96)
    assert found["largest_difference"] < 1e-4
    assert found["last_loss"] != found["first_loss"]
