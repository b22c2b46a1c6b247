"""Packing loses no token, keeps sequences separate, and gives the loss and gradients of single rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.tokens.collation import collate
from core.data.tokens.encoding import IGNORE_INDEX, EncodedSequence
from core.data.tokens.packing import build_rows, pack_best_fit, split_into_windows
from core.engine import Engine
from core.errors import SpecError
from core.model.base import Base
from core.model.families import family_of
from core.model.packing_check import leaks
from core.model.resident import Resident
from core.spec.training import TrainSpec
from core.store.workspace import Workspace
from tests.conftest import SENTENCES
from tests.core.model.test_families import VOCABULARY, tiny

PACKING = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "minimax_m2")


@given(st.lists(st.integers(2, 40), min_size=1, max_size=120))
@settings(max_examples=60, deadline=None)
def test_every_sequence_has_one_row_and_rows_are_nearly_minimal(
    sizes: list[int],
) -> None:
    rows = pack_best_fit(sizes, 40)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in row) <= 40 for row in rows)
    fewest = -(-sum(sizes) // 40)
    assert len(rows) <= 11 / 9 * max(fewest, sum(s > 20 for s in sizes)) + 1 or len(rows) <= 1.5 * fewest + 1
    assert rows == pack_best_fit(sizes, 40)


def test_short_sequences_fill_their_rows() -> None:
    rng = random.Random(3)
    sizes = [rng.randint(5, 200) for _ in range(1000)]
    assert sum(sizes) / (256 * len(pack_best_fit(sizes, 256))) > 0.98


def test_a_row_of_short_sequences_is_a_sample_of_all_short_ones() -> None:
    rng = random.Random(4)
    sizes = [rng.randint(5, 60) for _ in range(2000)]
    rows = pack_best_fit(sizes, 512)[:-1]  # the last one is not full
    means = [sum(sizes[i] for i in row) / len(row) for row in rows]
    assert max(means) - min(means) < 30, "with the longest first, rows of 60 and rows of 5 are 55 apart"
    assert sum(sizes) / (512 * (len(rows) + 1)) > 0.98


@pytest.mark.parametrize("overlap", [0, 1, 5, 8])
def test_windows_train_every_token_once_and_open_with_the_overlap(overlap: int) -> None:
    ids = list(range(100, 171))
    parts = split_into_windows(1, ids, 16, overlap)
    assert [t for p in parts for t, m in zip(p.ids, p.loss_mask, strict=True) if m] == ids
    assert all(len(p.ids) <= 16 and not p.loss_mask[0] for p in parts) and parts[0].ids[0] == 1
    for before, after in zip(parts, parts[1:], strict=False):
        shared = max(1, overlap)
        assert after.ids[:shared] == before.ids[-shared:]
        assert after.loss_mask == [0] * shared + [1] * (len(after.ids) - shared)


def test_an_overlap_above_half_a_window_is_refused() -> None:
    with pytest.raises(SpecError, match="at most 8"):
        split_into_windows(1, list(range(50)), 16, 9)


def sequences(count: int, seed: int, longest: int = 14) -> list[EncodedSequence]:
    """Random sequences, half of them with a context that is not trained."""
    rng = random.Random(seed)
    examples = []
    for i in range(count):
        size = rng.randint(3, longest)
        context = rng.randint(1, size - 1) if i % 2 else 1
        examples.append(
            EncodedSequence(
                [rng.randrange(2, VOCABULARY) for _ in range(size)], [0] * context + [1] * (size - context)
            )
        )
    return examples


def test_packed_rows_restart_positions_and_never_predict_a_first_token() -> None:
    rows, stats = build_rows(
        [
            EncodedSequence([5, 6, 7], [1, 1, 1]),
            EncodedSequence([8, 9], [1, 1]),
            EncodedSequence([4, 3], [0, 1]),
        ],
        6,
        packed=True,
    )
    batch = collate(rows, pad=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    x = IGNORE_INDEX
    assert batch["labels"].tolist() == [[x, 6, 7, x, 9], [x, 3, x, x, x]]
    assert "attention_mask" not in batch and batch["row_lengths"].tolist() == [5, 2]
    assert (stats.rows, stats.sequences, stats.tokens, stats.trained, stats.fill) == (
        2,
        3,
        7,
        4,
        round(7 / 12, 4),
    )


def resident_of(family: str, root: Path) -> Resident:
    model = tiny(family)
    parameters = sum(p.numel() for p in model.parameters())
    base = Base(
        family, model, None, family_of(model.config), "f", "none", torch.device("cpu"), 64, parameters, False
    )
    return Resident(base, Workspace(root))


@pytest.fixture
def resident_with_trainee(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Resident]:
    """A resident tiny model of a family, with a trainee that already changes the logits."""
    resident = resident_of(request.param, tmp_path)
    family = resident.base.family
    resident.add_trainee(
        "t",
        {
            "task_type": "CAUSAL_LM",
            "r": 4,
            "lora_alpha": 8,
            "target_modules": list(family.targets),
            "fan_in_fan_out": family.fan_in_fan_out,
        },
    )
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, p in resident.peft.named_parameters():  # type: ignore[union-attr]
            if "lora_" in key:
                p.copy_(torch.randn(p.shape, generator=rng) * 0.05)
    try:
        yield resident
    finally:
        resident.remove_trainee()
        resident.base.model.eval()


def loss_and_gradients(
    resident: Resident, batches: list[list[dict[str, Any]]]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Computes the loss (sum of nats over sum of tokens) and the gradient of each trained tensor."""
    peft: Any = resident.peft
    peft.zero_grad()
    collated = [collate(rows, 0) for rows in batches]
    for batch in collated:
        batch.pop("row_lengths", None)
    tokens = sum(int((b["labels"][:, 1:] != IGNORE_INDEX).sum()) for b in collated)
    total = 0.0
    for batch in collated:
        loss = resident.base.model(**batch, num_items_in_batch=tokens, use_cache=False).loss
        loss.backward()
        total += float(loss.detach())
    return total, {
        k: p.grad.clone() for k, p in peft.named_parameters() if p.requires_grad and p.grad is not None
    }


@pytest.mark.parametrize("resident_with_trainee", PACKING, indirect=True)
def test_packed_rows_have_the_loss_and_gradients_of_single_rows(resident_with_trainee: Resident) -> None:
    assert leaks(resident_with_trainee) == ""
    examples = sequences(17, seed=1)
    single, _ = build_rows(examples, 32, packed=False)
    packed, stats = build_rows(examples, 32, packed=True)
    assert stats.sequences == 17 and max(len(r["seq_lengths"]) for r in packed) >= 3
    single_loss, single_grads = loss_and_gradients(resident_with_trainee, [[row] for row in single])
    packed_loss, packed_grads = loss_and_gradients(
        resident_with_trainee, [packed[i : i + 2] for i in range(0, len(packed), 2)]
    )
    assert packed_loss == pytest.approx(single_loss, abs=1e-5)
    assert set(packed_grads) == set(single_grads) and packed_grads
    assert max(float((packed_grads[k] - single_grads[k]).abs().max()) for k in single_grads) < 1e-5
    assert max(float(g.abs().max()) for g in single_grads.values()) > 1e-3, "there is a gradient to compare"


@pytest.mark.parametrize("resident_with_trainee", ["llama"], indirect=True)
def test_the_comparison_detects_sequences_that_attend_to_each_other(resident_with_trainee: Resident) -> None:
    rows, _ = build_rows(sequences(17, seed=1), 32, packed=True)
    clean, _ = loss_and_gradients(resident_with_trainee, [rows])
    leaking, _ = loss_and_gradients(
        resident_with_trainee, [[{k: v for k, v in row.items() if k != "seq_lengths"} for row in rows]]
    )
    assert abs(leaking - clean) > 1e-4


def test_models_that_mix_packed_sequences_are_detected_by_their_outputs(tmp_path: Path) -> None:
    resident = resident_of("llama", tmp_path)
    assert leaks(resident) == ""
    real = resident.base.model.forward

    def ignore_positions(
        input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **more: Any
    ) -> Any:
        return real(input_ids=input_ids, **more)

    def scale_packed_logits(
        input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **more: Any
    ) -> Any:
        out = real(input_ids=input_ids, position_ids=position_ids, **more)
        out.logits = out.logits * (1.5 if position_ids is not None else 1.0)
        return out

    try:
        resident.base.model.forward = ignore_positions
        assert "attend to each other" in leaks(resident)
        resident.base.model.forward = scale_packed_logits
        assert "different logits in a packed row and alone" in leaks(resident)
        resident.base.model.forward = lambda input_ids, use_cache: real(input_ids=input_ids)
        assert "does not accept position ids" in leaks(resident)
    finally:
        del resident.base.model.forward
    assert "encoder-decoder" in leaks(resident_of("t5", tmp_path / "t5"))


FAST: dict[str, Any] = {
    "learning_rate": 5e-3,
    "max_length": 96,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
    "max_steps": 2,
    "eval_steps": 9,
    "save_steps": 9,
}


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("packing"), str(tiny_base), device="cpu") as engine:
        yield engine


def events(engine: Engine, spec: TrainSpec, kind: str) -> list[dict[str, Any]]:
    run = engine.runs.wait(engine.runs.start(spec))
    assert run.status.value == "finished", run.error
    return [e for e in engine.runs.events(run.id)[0] if e["kind"] == kind]


@pytest.mark.slow
def test_every_token_has_equal_weight_whatever_the_batch_size_or_packing(engine: Engine, pairs: Path) -> None:
    """A step's loss is one sum of nats over one sum of tokens, however many trained tokens each row has."""
    data = engine.datasets.import_files([pairs], "Pairs", "task")
    spec: dict[str, Any] = {"kind": "task", "dataset": data.id, **FAST}
    ways = ((8, 1), (4, 2), (1, 8))
    losses = [
        [
            e["loss"]
            for e in events(engine, TrainSpec(name=f"W{b}", batch_size=b, accumulation=a, **spec), "step")
        ]
        for b, a in ways
    ]
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=1e-5)
    # one step over all rows: packed and padded runs have the same sum
    whole = {**spec, "accumulation": 1, "batch_size": 64, "max_steps": 1, "warmup_ratio": 0.0}
    packed, padded = (
        events(engine, TrainSpec(name=f"P{p}", packing=p, **whole), "step")[0]["loss"] for p in (True, False)
    )
    assert packed == pytest.approx(padded, abs=1e-5)


@pytest.mark.slow
def test_the_data_event_counts_rows_tokens_and_truncation(
    engine: Engine, pairs: Path, tmp_path: Path
) -> None:
    papers = tmp_path / "papers.txt"
    papers.write_text(
        "\n\n---\n\n".join(" ".join(SENTENCES[i : i + 4]) for i in range(0, 48, 4)), encoding="utf-8"
    )
    data = engine.datasets.import_files([pairs], "Pairs", "task")
    rows = data.splits["train"]
    (whole,) = events(
        engine, TrainSpec(kind="task", name="Whole", dataset=data.id, **{**FAST, "max_steps": 1}), "data"
    )
    assert whole["packed"] and whole["cut"] == whole["lost"] == 0 and whole["sequences"] == rows
    assert whole["rows"] < rows / 2 and whole["fill"] > 0.7 and 0 < whole["trained"] < whole["tokens"]
    (short,) = events(
        engine,
        TrainSpec(kind="task", name="Short", dataset=data.id, **{**FAST, "max_steps": 1, "max_length": 20}),
        "data",
    )
    assert short["cut"] == rows and short["lost"] == whole["tokens"] - short["tokens"] > 0
    text = engine.datasets.import_files([papers], "Papers", "domain")
    (cut,) = events(
        engine,
        TrainSpec(
            kind="domain",
            name="Text",
            dataset=text.id,
            overlap=4,
            **{**FAST, "max_steps": 1, "max_length": 16},
        ),
        "data",
    )
    (long,) = events(
        engine, TrainSpec(kind="domain", name="Long", dataset=text.id, **{**FAST, "max_steps": 1}), "data"
    )
    assert cut["windows"] > 0 and long["windows"] == 0 and cut["lost"] == 0
    assert cut["trained"] == long["trained"], "overlapping tokens are read twice and trained once"


@pytest.mark.slow
def test_the_rows_of_an_epoch_are_shuffled_by_the_seed(engine: Engine, corpus: Path) -> None:
    text = engine.datasets.import_files([corpus], "Corpus", "domain")
    spec: dict[str, Any] = {
        "kind": "domain",
        "dataset": text.id,
        **FAST,
        "max_steps": 4,
        "batch_size": 1,
        "accumulation": 1,
        "learning_rate": 1e-7,
    }
    one, same, other = (
        [e["loss"] for e in events(engine, TrainSpec(name=f"S{i}", seed=seed, **spec), "step")]
        for i, seed in enumerate((1, 1, 2))
    )
    assert one == same != other
