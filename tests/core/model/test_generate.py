"""Generation and scoring: a column depends only on its own mix and seed; scores are sums over tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from core.data.tokens.encoding import encode_text
from core.errors import SpecError
from core.model.base import load_base
from core.model.families import FAMILIES
from core.model.generate import encode_prompt, generate, inference_mode_for
from core.model.kv_cache import GROWTH, PreallocatedLayer
from core.model.resident import Resident
from core.model.scoring import score
from core.spec.mix import Mix, Sampling
from core.store.workspace import Workspace
from tests.core.engine.test_bases import build_tiny
from tests.core.model.test_mixing import SHAPES, add_random_adapters

MIXES = [
    Mix(),
    Mix(weights={"one": 1.0}),
    Mix(weights={"two": 1.0}),
    Mix(weights={"one": 0.6, "three": -1.0}),
]


@pytest.fixture(scope="module")
def resident(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resident]:
    resident = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    add_random_adapters(resident, SHAPES)
    yield resident


def write(
    resident: Resident, mixes: list[Mix], sampling: Sampling, prompts: list[str] | None = None
) -> list[list[int]]:
    texts = prompts or ["Where is the red lamp?"] * len(mixes)
    ids = [encode_prompt(resident, t, True, sampling.max_new_tokens) for t in texts]
    states = list(generate(resident, ids, mixes, [sampling] * len(mixes)))[-1]
    return [s.ids for s in states]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=24),
        Sampling(max_new_tokens=24, temperature=0.9, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=5),
    ],
)
def test_a_column_is_the_same_alone_and_in_a_batch(resident: Resident, sampling: Sampling) -> None:
    together = write(resident, MIXES, sampling)
    alone = [write(resident, [m], sampling)[0] for m in MIXES]
    assert together == alone
    assert len({tuple(t) for t in together}) == 4, "four mixes give four texts"


def test_greedy_text_equals_transformers_own_generate(resident: Resident) -> None:
    ids = encode_prompt(resident, "Where is the red lamp?", True, 24)
    with inference_mode_for(resident, resident.rows([Mix(weights={"one": 1.0})])):
        reference = resident.base.model.generate(
            torch.tensor([ids]),
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=0,
            attention_mask=torch.ones(1, len(ids)),
        )
    ours = write(resident, [Mix(weights={"one": 1.0})], Sampling(max_new_tokens=24))[0]
    expected = reference[0, len(ids) :].tolist()
    assert ours == [t for t in expected if t not in resident.base.eos_ids]


def test_identical_mixes_with_the_same_seed_give_identical_text(resident: Resident) -> None:
    same = write(resident, [MIXES[1]] * 3, Sampling(max_new_tokens=20, temperature=1.0, seed=9))
    assert same[0] == same[1] == same[2]
    assert same[0] != write(resident, [MIXES[1]], Sampling(max_new_tokens=20, temperature=1.0, seed=10))[0]


def test_prompts_of_different_length_do_not_affect_each_other(resident: Resident) -> None:
    prompts = ["Hi", "Where is the very old red lamp of the north room, please?"]
    both = write(resident, [MIXES[1], MIXES[1]], Sampling(max_new_tokens=16), prompts)
    assert both == [write(resident, [MIXES[1]], Sampling(max_new_tokens=16), [p])[0] for p in prompts]


def test_a_column_that_ends_leaves_the_batch_and_others_continue(resident: Resident) -> None:
    ids = encode_prompt(resident, "Where is the red lamp?", True, 24)
    samplings = [Sampling(max_new_tokens=n) for n in (3, 24, 9, 24)]
    states = list(generate(resident, [ids] * 4, MIXES, samplings))[-1]
    assert [len(s.ids) for s in states] == [3, 24, 9, 24] or all(s.reason for s in states)
    full = write(resident, MIXES, Sampling(max_new_tokens=24))
    assert [s.ids for s in states] == [full[0][:3], full[1], full[2][:9], full[3]]


def test_a_stop_text_ends_the_answer_before_it(resident: Resident) -> None:
    tokenizer = resident.base.tokenizer
    whole = tokenizer.decode(write(resident, [MIXES[3]], Sampling(max_new_tokens=24))[0])
    stop = whole[6:9]
    ids = encode_prompt(resident, "Where is the red lamp?", True, 24)
    states = list(generate(resident, [ids], [MIXES[3]], [Sampling(max_new_tokens=24, stop=(stop,))]))[-1]
    assert states[0].reason == "stop"
    assert states[0].column(tokenizer).text == whole[: whole.index(stop)].strip()


def test_closing_a_generation_early_deactivates_its_mix(resident: Resident) -> None:
    ids = encode_prompt(resident, "Where is the red lamp?", True, 24)
    steps = generate(resident, [ids], [MIXES[1]], [Sampling(max_new_tokens=24)])
    next(steps)
    steps.close()
    assert resident.mixer.weights is None


def test_prompts_too_long_for_the_context_are_refused_with_numbers(resident: Resident) -> None:
    with pytest.raises(
        SpecError,
        match=r"prompt and answer together may have at most 256 tokens, got \d+ and 200\.",
    ):
        encode_prompt(resident, "word " * 100, True, 200)
    with pytest.raises(SpecError, match="The prompt is empty"):
        encode_prompt(resident, "  ", True, 8)


def test_the_encoder_and_the_decoder_each_have_the_whole_context(resident: Resident) -> None:
    family = replace(resident.base.family, seq2seq=True)
    seq2seq = Resident(replace(resident.base, family=family), resident.workspace)
    ids = encode_prompt(seq2seq, "word " * 20, True, 256)
    assert 0 < len(ids) < 256 < len(ids) + 256
    with pytest.raises(
        SpecError, match=r"prompt and answer may have at most 256 tokens each, got \d+ and 257\."
    ):
        encode_prompt(seq2seq, "word " * 20, True, 257)
    with pytest.raises(SpecError, match=r"at most 256 tokens each, got \d+ and 8\."):
        encode_prompt(seq2seq, "word " * 400, True, 8)


def test_scores_are_sums_of_nats_over_sums_of_tokens(resident: Resident) -> None:
    texts = [
        "The red lamp is kept in the north room.",
        "The bell",
        "The old clock is kept in the dry room. " * 9,
    ]
    sequences = [e for t in texts for e in encode_text(resident.base.tokenizer, t, 64)]
    scores = list(score(resident, sequences, MIXES))[-1][1]
    for mix, total in zip(MIXES, scores, strict=True):
        nats = tokens = 0.0
        for e in sequences:  # one by one, without padding
            with inference_mode_for(resident, resident.rows([mix])):
                logits = resident.base.model(torch.tensor([e.ids])).logits[0].double()
            picked = logits[:-1].log_softmax(-1)[range(len(e.ids) - 1), e.ids[1:]]
            nats -= float((picked * torch.tensor(e.loss_mask[1:])).sum())
            tokens += sum(e.loss_mask[1:])
        assert total.tokens == tokens
        assert total.nats == pytest.approx(nats, rel=1e-5)


def test_a_mix_change_in_mid_answer_prefills_again_and_continues(resident: Resident) -> None:
    sampling = Sampling(max_new_tokens=16)
    ids = encode_prompt(resident, "Where is the red lamp?", True, 16)
    mixes = [MIXES[1], MIXES[2], Mix(name="Renamed", weights=MIXES[2].weights)]
    current_mixes = list(mixes)
    for steps, states in enumerate(
        generate(resident, [ids] * 3, mixes, [sampling] * 3, lambda: current_mixes), start=1
    ):
        if steps == 6:
            current_mixes[0] = MIXES[3]
            current_mixes[2] = Mix(name="Another name", weights=MIXES[2].weights)
    first, beside, renamed = states
    before = write(resident, [MIXES[1]], Sampling(max_new_tokens=6))[0]
    after = list(generate(resident, [[*ids, *before]], [MIXES[3]], [Sampling(max_new_tokens=10)]))[-1][0].ids
    assert first.ids == before + after and len(first.ids) == 16
    assert first.ids != write(resident, [MIXES[1]], sampling)[0], "the new mix gives another text"
    assert beside.ids == renamed.ids == write(resident, [MIXES[2]], sampling)[0], (
        "other columns are not affected"
    )
    column = first.column(resident.base.tokenizer)
    assert [(t.tokens, t.stamp["weights"]) for t in column.mix_changes] == [(6, {"one": 0.6, "three": -1.0})]
    assert resident.base.tokenizer.decode(before, skip_special_tokens=True).endswith(
        column.text[max(0, column.mix_changes[0].at - 3) : column.mix_changes[0].at].strip() or " "
    )
    assert column.stamp["weights"] == {"one": 0.6, "three": -1.0}
    assert not beside.column(resident.base.tokenizer).mix_changes
    assert not renamed.column(resident.base.tokenizer).mix_changes


def test_the_preallocated_kv_cache_equals_transformers_own() -> None:
    generator = torch.Generator().manual_seed(2)
    ours, own = PreallocatedLayer(), DynamicLayer()
    rows = 4
    for new in (7, *[1] * (GROWTH + 3), 5, 1):
        k, v = (
            torch.randn(rows, 2, new, 8, generator=generator),
            torch.randn(rows, 2, new, 8, generator=generator),
        )
        for mine, theirs in zip(ours.update(k, v), own.update(k, v), strict=True):
            assert torch.equal(mine, theirs)
        if new == 5 or ours.get_seq_length() == 20:
            rows = 3 if rows == 4 else 2
            keep = torch.tensor([2, 0, 1][:rows])
            ours.batch_select_indices(keep)
            own.batch_select_indices(keep)
    assert ours.get_seq_length() == own.get_seq_length() == 7 + GROWTH + 3 + 6 and rows == 2


def test_the_preallocated_kv_cache_is_not_copied_at_every_token() -> None:
    layer = PreallocatedLayer()
    layer.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))
    places = {
        layer.update(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))[0].data_ptr()
        for _ in range(2 * GROWTH)
    }
    assert len(places) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_end_at_the_context_of_every_family(family: str, tmp_path: Path) -> None:
    base = load_base(str(build_tiny(tmp_path / family, family)), "none", "cpu")
    tiny = Resident(base, Workspace(tmp_path / "workspace"))
    base.model.generation_config.eos_token_id = []  # no answer ends by itself
    base.tokenizer.eos_token = "<|user|>"
    seq2seq, room = base.family.seq2seq, 7
    prompts = [[20, 21, 22], [20 + i % 40 for i in range(base.context - room)]]
    sampling = Sampling(max_new_tokens=120)
    limits = [120, 120 if seq2seq else room]  # an encoder-decoder base has the context on each side
    *_, states = generate(tiny, prompts, [Mix()] * 2, [sampling] * 2)
    assert [s.limit for s in states] == limits
    for state in states:
        assert len(state.ids) == state.limit if state.reason == "length" else len(state.ids) < state.limit
    assert states[1].ids == list(generate(tiny, prompts[1:], [Mix()], [sampling]))[-1][0].ids
    with pytest.raises(SpecError, match=rf"in the context of {base.context} tokens, got {base.context + 1}"):
        next(generate(tiny, [[20] * (base.context + 1)], [Mix()], [sampling]))
