"""Weights on Auto: gates choose by prompt or tokens, and what answers is exactly the chosen mix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.tokens.encoding import EncodedSequence, Prompt
from core.errors import AdapterError, SpecError
from core.model.activation import inference_mode_for
from core.model.answer_batch import AnswerBatch
from core.model.base import load_base
from core.model.gating import CANDIDATE_LIMIT, measure_evidence, resolve_mixes
from core.model.generate import encode_prompt, generate, make_states
from core.model.resident import Resident
from core.model.scoring import score
from core.spec.gate import WINDOW, Evidence, GateCalibration
from core.spec.mix import Mix, Sampling
from core.store.workspace import Workspace
from tests.core.engine.test_bases import build_tiny
from tests.core.model.test_mixing import SHAPES, add_random_adapters

LAMP, BELL = "Where is the red lamp?", "The old bell of the cold room, please."
KINDS = {"one": "domain", "two": "task", "three": "domain"}
ALWAYS, NEVER = -100.0, 100.0  # nats a token that every prompt has, and none


@pytest.fixture
def resident(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resident]:
    resident = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    add_random_adapters(resident, SHAPES)
    for name in SHAPES:
        set_threshold(resident, name, NEVER)
    yield resident


def set_threshold(
    resident: Resident, name: str, threshold: float, temperature: float = 0.01, area: float = 1.0
) -> None:
    calibration = GateCalibration(
        threshold,
        temperature,
        area,
        (1.0, 0.1),
        (0.0, 0.1),
        (9, 9),
        base_fingerprint=resident.base.fingerprint,
    )
    resident.calibrations[name] = KINDS.get(name, "domain"), calibration


def encode(resident: Resident, text: str) -> list[int]:
    return encode_prompt(resident, text, True, 24)


def answer(
    resident: Resident, text: str, mixes: Sequence[Mix], sampling: Sampling | None = None
) -> list[dict]:
    chosen = sampling or Sampling(max_new_tokens=16)
    ids = encode(resident, text)
    states = list(generate(resident, [ids] * len(mixes), mixes, [chosen] * len(mixes)))[-1]
    return [{"ids": s.ids, **s.column(resident.base.tokenizer).stamp} for s in states]


def evidence_of(resident: Resident, text: str, name: str) -> Evidence:
    for found in measure_evidence(resident, [encode(resident, text)], [name]):
        value = found[0][name]
    assert value is not None
    return value


def test_a_gate_is_on_for_one_prompt_and_off_for_another(resident: Resident) -> None:
    likely, unlikely = sorted((evidence_of(resident, t, "one"), t) for t in (LAMP, BELL))[::-1]
    set_threshold(resident, "one", (likely[0] + unlikely[0]) / 2)
    mix = Mix(name="gated", weights={"one": 1.0}, auto={"one": "hard"})
    for (evidence, text), weights in ((likely, {"one": 1.0}), (unlikely, {})):
        (gated,) = answer(resident, text, [mix])
        (fixed,) = answer(resident, text, [Mix(weights=weights)])
        assert gated["ids"] == fixed["ids"] and gated["weights"] == fixed["weights"] == weights
        assert gated["mix"] == "gated"
        decision = gated["auto"]["one"]
        assert decision["weight"] == weights.get("one", 0.0)
        assert decision["evidence"] == pytest.approx(evidence, abs=1e-4)


def test_the_evidence_is_that_of_two_separate_forwards(resident: Resident) -> None:
    ids = encode(resident, LAMP)
    nats = []
    for mix in (Mix(), Mix(weights={"two": 1.0})):
        with inference_mode_for(resident, resident.rows([mix])):
            logits = resident.base.model(torch.tensor([ids])).logits[0, :-1].double()
        nats.append(torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]])
    gain = (nats[1] - nats[0]).tolist()
    expected = max(sum(gain[i : i + WINDOW]) / WINDOW for i in range(len(gain) - WINDOW + 1))
    assert evidence_of(resident, LAMP, "two") == pytest.approx(expected, abs=1e-5)
    assert evidence_of(resident, LAMP, "two").tokens == len(ids) - 1
    (stamp,) = answer(resident, LAMP, [Mix(weights={"two": 1.0}, auto={"two": "hard"})])
    assert stamp["auto"]["two"]["evidence"] == pytest.approx(expected, abs=1e-4)


def test_columns_beside_a_gate_answer_as_they_do_alone(resident: Resident) -> None:
    set_threshold(resident, "one", ALWAYS)
    fixed = Mix(weights={"one": 1.0, "two": 0.5})
    gated = Mix(weights=fixed.weights, auto={"one": "hard"})
    sampling = Sampling(max_new_tokens=12, temperature=0.8, repetition_penalty=1.2, seed=3)
    together = answer(resident, LAMP, [fixed, gated, Mix(), gated, Mix(weights={"three": 1.0})], sampling)
    assert [a["ids"] for a in together] == [
        answer(resident, LAMP, [m], sampling)[0]["ids"]
        for m in (fixed, fixed, Mix(), fixed, Mix(weights={"three": 1.0}))
    ]


def step_through(
    resident: Resident, prompts: list[list[int]], mixes: list[Mix], tokens: list[int]
) -> list[torch.Tensor]:
    """The logits of every step of answers whose tokens are given."""
    samplings = [Sampling(max_new_tokens=len(tokens) + 1)] * len(mixes)
    states = make_states(resident.base, prompts, mixes, samplings)
    batch = AnswerBatch(resident, prompts, states, len(tokens) + 1, fast=False)
    logits = [batch.step()]
    for token in tokens:
        for state in batch.states:
            state.ids.append(token)
        batch.append(torch.tensor([token] * len(mixes)))
        logits.append(batch.step())
    return logits


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resident]:
    found = {}
    for family in ("llama", "qwen2", "gpt2"):
        base = load_base(str(build_tiny(tmp_path_factory.mktemp(family), family)), "none", "cpu")
        found[family] = Resident(base, Workspace(tmp_path_factory.mktemp("ws")))
    return found


@settings(max_examples=12, deadline=None)
@given(
    family=st.sampled_from(("llama", "qwen2", "gpt2")),
    ranks=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    mode=st.sampled_from(("hard", "soft", "token")),
    is_open=st.lists(st.booleans(), min_size=4, max_size=4),
    lengths=st.lists(st.integers(5, 40), min_size=2, max_size=2),
)
def test_a_gate_that_never_moves_equals_the_fixed_mix(
    families: dict[str, Resident],
    ranks: list[int],
    family: str,
    mode: str,
    is_open: list[bool],
    lengths: list[int],
) -> None:
    resident = families[family]
    for name in list(resident.digests):
        resident.unload(name)
    targets = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "down_proj"]
    names = [f"a{i}" for i in range(len(ranks))]
    add_random_adapters(resident, {n: (r, 2 * r, targets) for n, r in zip(names, ranks, strict=True)})
    for name, opened in zip(names, is_open, strict=False):
        KINDS[name] = f"kind {name}"  # they do not compete
        set_threshold(resident, name, ALWAYS if opened else NEVER)
    gated = Mix(weights=dict.fromkeys(names, 0.7), auto=dict.fromkeys(names, mode))
    fixed = Mix(weights={n: 0.7 for n, opened in zip(names, is_open, strict=False) if opened})
    prompts = [[3 + k % 300 for k in range(n)] for n in lengths]
    tokens = [9, 40, 77, 101]
    ours = step_through(resident, prompts, [gated, gated], tokens)
    reference = step_through(resident, prompts, [fixed, fixed], tokens)
    for one, other in zip(ours, reference, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_an_answer_whose_gate_switches_goes_on_as_if_it_were_recomputed(resident: Resident) -> None:
    set_threshold(resident, "one", ALWAYS)
    mix = Mix(weights={"one": 1.0, "two": 1.0}, auto={"one": "token"})
    prompt, tokens = encode(resident, LAMP), [20, 31, 45, 60, 71, 88]
    (state,) = make_states(resident.base, [prompt], [mix], [Sampling(max_new_tokens=9)])
    batch = AnswerBatch(resident, [prompt], [state], 9, fast=False)
    batch.step()
    for n, token in enumerate(tokens):
        if n == 2:
            set_threshold(resident, "one", NEVER)  # its window of tokens is below the threshold from here on
        state.ids.append(token)
        batch.append(torch.tensor([token]))
        logits = batch.step()
        used = Mix(weights={"one": 1.0, "two": 1.0} if n < 2 else {"two": 1.0})
        with inference_mode_for(resident, resident.rows([used])):
            fresh = resident.base.model(torch.tensor([[*prompt, *state.ids]])).logits[:, -1]
        assert torch.allclose(logits, fresh, atol=1e-5)
        assert state.mix.weights == used.weights
    (change,) = state.column(resident.base.tokenizer).mix_changes
    assert change.tokens == 3 and change.stamp["weights"] == {"two": 1.0}
    assert change.stamp["auto"]["one"]["weight"] == 0.0


def test_a_gate_that_follows_tokens_needs_more_evidence_to_switch(resident: Resident) -> None:
    evidence = evidence_of(resident, LAMP, "one")
    mix = Mix(weights={"one": 1.0}, auto={"one": "token"})
    prompt = encode(resident, LAMP)
    set_threshold(resident, "one", evidence - 0.001, temperature=1.0)
    (state,) = make_states(resident.base, [prompt], [mix], [Sampling(max_new_tokens=9)])
    batch = AnswerBatch(resident, [prompt], [state], 9, fast=False)
    batch.step()
    assert state.mix.weights == {"one": 1.0}
    set_threshold(resident, "one", evidence + 0.5, temperature=1.0)  # half a unit of log-odds: not enough
    state.ids.append(20)
    batch.append(torch.tensor([20]))
    assert state.mix.weights == {"one": 1.0}
    batch.step()
    set_threshold(resident, "one", evidence + 9, temperature=1.0)
    state.ids.append(20)
    batch.append(torch.tensor([20]))
    assert state.mix.weights == {}


def test_a_soft_gate_gives_its_share_of_the_weight(resident: Resident) -> None:
    evidence = evidence_of(resident, LAMP, "one")
    set_threshold(resident, "one", evidence - 0.5 * 1.0986, temperature=0.5)  # log-odds ln 3: three quarters
    mix = Mix(weights={"one": 1.0}, auto={"one": "soft"})
    (gated,) = answer(resident, LAMP, [mix])
    (fixed,) = answer(resident, LAMP, [Mix(weights={"one": 0.75})])
    assert gated["weights"] == {"one": 0.75} and gated["ids"] == fixed["ids"]
    assert gated["auto"]["one"]["probability"] == pytest.approx(0.75, abs=0.01)


def test_domains_compete_and_a_task_does_not(resident: Resident) -> None:
    for name, margin in (("one", 0.2), ("three", 0.4), ("two", 0.1)):
        set_threshold(resident, name, evidence_of(resident, LAMP, name) - margin, temperature=0.1)
    names = ("one", "two", "three")
    mix = Mix(weights=dict.fromkeys(names, 1.0), auto=dict.fromkeys(names, "hard"))
    (gated,) = answer(resident, LAMP, [mix])
    assert gated["weights"] == {"two": 1.0, "three": 1.0}
    assert gated["auto"]["one"]["rival"] == "three" and gated["auto"]["one"]["weight"] == 0.0
    soft = Mix(weights=dict.fromkeys(names, 1.0), auto=dict.fromkeys(names, "soft"))
    shares = answer(resident, LAMP, [soft])[0]["auto"]
    odds = [2.71828**2, 2.71828**4]
    assert shares["one"]["probability"] == pytest.approx(odds[0] / (1 + sum(odds)), abs=0.01)
    assert shares["two"]["probability"] == pytest.approx(2.71828 / 3.71828, abs=0.01)


@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        (None, "not calibrated"),
        ({"base_fingerprint": "another"}, "another base"),
        ({"area": 0.6}, "hardly told apart"),
    ],
)
def test_a_gate_that_knows_nothing_stays_off_and_says_why(
    resident: Resident, calibration: dict | None, reason: str
) -> None:
    set_threshold(resident, "one", ALWAYS)
    kind, whole = resident.calibrations["one"]
    assert whole is not None
    changed = GateCalibration.from_json({**whole.to_json(), **calibration}) if calibration else None
    resident.set_calibration("one", changed)
    (stamp,) = answer(resident, LAMP, [Mix(weights={"one": 1.0, "two": 1.0}, auto={"one": "hard"})])
    assert stamp["weights"] == {"two": 1.0} and reason in stamp["auto"]["one"]["obstacle"]


def test_a_prompt_of_three_tokens_gives_no_evidence(resident: Resident) -> None:
    set_threshold(resident, "one", ALWAYS)
    mix = Mix(weights={"one": 1.0}, auto={"one": "hard"})
    states = list(generate(resident, [[5, 6, 7]], [mix], [Sampling(max_new_tokens=4)]))[-1]
    assert "fewer than 4 tokens" in states[0].stamp["auto"]["one"]["obstacle"]
    assert states[0].stamp["weights"] == {}


def test_gates_of_an_encoder_decoder_base_stay_off(tmp_path: Path) -> None:
    resident = Resident(load_base(str(build_tiny(tmp_path / "t5", "t5")), "none", "cpu"), Workspace(tmp_path))
    add_random_adapters(resident, {"one": (2, 4, ["q", "v"])})
    set_threshold(resident, "one", ALWAYS)
    (gated,) = answer(resident, LAMP, [Mix(weights={"one": 1.0}, auto={"one": "hard"})])
    (base,) = answer(resident, LAMP, [Mix()])
    assert gated["ids"] == base["ids"] and "encoder" in gated["auto"]["one"]["obstacle"]


def test_a_slider_moved_to_auto_and_back_is_followed_in_mid_answer(resident: Resident) -> None:
    set_threshold(resident, "one", ALWAYS)
    auto, off = Mix(weights={"one": 1.0}, auto={"one": "hard"}), Mix()
    plan = {0: off, 4: auto, 8: off, 12: Mix(weights={"one": 1.0})}
    ids, steps = encode(resident, LAMP), 0

    def poll() -> list[Mix]:
        return [plan[max(n for n in plan if n <= steps)], Mix(weights={"two": 1.0})]

    samplings = [Sampling(max_new_tokens=16)] * 2
    for states in generate(resident, [ids] * 2, poll(), samplings, poll):
        steps += 1
    assert [c[0] for c in states[0].mix_changes] == [4, 8, 12]
    assert [c[2]["weights"] for c in states[0].mix_changes] == [{"one": 1.0}, {}, {"one": 1.0}]
    answered = [*ids]
    for n, token in enumerate(states[0].ids):  # greedy under the weights of each stretch
        weights = {"one": 1.0} if 4 <= n < 8 or n >= 12 else {}
        with inference_mode_for(resident, resident.rows([Mix(weights=weights)])):
            assert int(resident.base.model(torch.tensor([answered])).logits[0, -1].argmax()) == token
        answered.append(token)
    assert states[1].ids == answer(resident, LAMP, [Mix(weights={"two": 1.0})])[0]["ids"]


def test_scores_follow_the_gate_of_each_sequence(resident: Resident) -> None:
    prompts = [encode(resident, t) for t in (LAMP, BELL)]
    rows = [EncodedSequence([*p, 20, 30, 40], [0] * len(p) + [1] * 3) for p in prompts]
    odds = [evidence_of(resident, t, "one") for t in (LAMP, BELL)]
    set_threshold(resident, "one", sum(odds) / 2)
    for _, scores in score(
        resident, rows, [Mix(weights={"one": 1.0}, auto={"one": "hard"}), Mix(weights={"one": 1.0}), Mix()]
    ):
        pass
    gated, on, off = ([s.rows[i][0] for i in range(2)] for s in scores)
    assert gated == pytest.approx([on[i] if odds[i] > sum(odds) / 2 else off[i] for i in range(2)], abs=1e-5)
    assert gated[0] != gated[1]


def test_more_gates_than_rows_allow_are_refused(resident: Resident) -> None:
    names = [f"extra {i}" for i in range(CANDIDATE_LIMIT)]
    for name in names:
        resident.digests[name] = "x"
        set_threshold(resident, name, NEVER)
    mix = Mix(weights=dict.fromkeys(names, 1.0), auto=dict.fromkeys(names, "hard"))
    with pytest.raises(SpecError, match="at most 15 adapters on Auto"):
        list(resolve_mixes(resident, [[1, 2, 3, 4]], [mix]))


def test_a_mix_on_auto_is_never_computed_as_if_it_were_on(resident: Resident) -> None:
    with pytest.raises(AdapterError, match="is on Auto"):
        resident.rows([Mix(weights={"one": 1.0}, auto={"one": "hard"})])


def test_a_gate_reads_the_last_question_of_a_conversation_only(resident: Resident) -> None:
    alone = {t: evidence_of(resident, t, "one") for t in (LAMP, BELL)}
    likely, unlikely = sorted(alone, key=alone.__getitem__, reverse=True)
    set_threshold(resident, "one", (alone[likely] + alone[unlikely]) / 2)
    mix = Mix(weights={"one": 1.0}, auto={"one": "hard"})
    for first, last in ((likely, unlikely), (unlikely, likely)):
        talk = [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": first},
            {"role": "assistant", "content": "It is in the north room."},
            {"role": "user", "content": last},
        ]
        prompt = encode_prompt(resident, talk, True, 8)
        assert isinstance(prompt, Prompt)
        content = resident.base.tokenizer.decode(prompt[prompt.question :])
        assert content.startswith(last[:4]) and first not in content
        states = list(generate(resident, [prompt], [mix], [Sampling(max_new_tokens=4)]))[-1]
        evidence = states[0].stamp["auto"]["one"]["evidence"]
        for found in measure_evidence(resident, [prompt], ["one"]):
            measured = found[0]["one"]
        assert measured is not None and evidence == pytest.approx(measured, abs=1e-4)
        assert measured.tokens == len(prompt) - prompt.question


def test_a_gate_by_the_prompt_stays_while_another_follows_the_tokens(resident: Resident) -> None:
    for name in ("one", "two"):
        set_threshold(resident, name, ALWAYS)
    mix = Mix(weights={"one": 1.0, "two": 1.0}, auto={"one": "hard", "two": "token"})
    prompt = encode(resident, LAMP)
    (state,) = make_states(resident.base, [prompt], [mix], [Sampling(max_new_tokens=9)])
    batch = AnswerBatch(resident, [prompt], [state], 9, fast=False)
    batch.step()
    assert state.mix.weights == {"one": 1.0, "two": 1.0}
    for name in ("one", "two"):
        set_threshold(resident, name, NEVER)
    state.ids.append(20)
    batch.append(torch.tensor([20]))
    assert state.mix.weights == {"one": 1.0}
    with pytest.raises(SpecError, match="soft gates or gates that follow"):
        Mix(weights={"one": 1.0, "two": 1.0}, auto={"one": "soft", "two": "token"})
