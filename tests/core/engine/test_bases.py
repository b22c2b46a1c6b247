"""Every base of the families table as a small model on disk: loaded, trained, saved, reloaded and mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import transformers as hf
from safetensors import safe_open

from core.data.tokens import span_corruption as sides
from core.data.tokens.collation import collate
from core.data.tokens.encoding import (
    EncodedSequence,
    encode_chat,
    encode_task,
    encode_text,
    encode_text_prompt,
    is_seq2seq,
)
from core.engine import Engine
from core.errors import AdapterError, BaseModelError, SpecError
from core.evaluate.measure import EvaluationData, measure
from core.merge.methods import BakeSpec
from core.model import experts
from core.model.base import load_base
from core.model.decoding import shift_logits
from core.model.families import FAMILIES
from core.model.generate import generate, inference_mode_for
from core.model.nf4_cpu import unpack_for_backward
from core.model.resident import Resident
from core.model.scoring import score
from core.spec.mix import Mix, Sampling
from core.spec.presets import PRESETS, resolve
from core.spec.training import RunStatus, TrainSpec
from core.store.adapters import CONFIG, WEIGHTS
from core.store.workspace import Workspace
from studio.tabs.suggestions import suggest_preset
from tests.conftest import SENTENCES, build_tiny_tokenizer
from tests.core.model.test_families import by_peft, logits

SHAPE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
STRANGERS = ("gpt_neox", "opt")  # no row in the table
SMALL: dict[str, Any] = {
    "max_steps": 2,
    "batch_size": 4,
    "accumulation": 1,
    "max_length": 48,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
    "learning_rate": 0.02,
}


def build_tiny(folder: Path, family: str) -> Path:
    """A random model of two layers of a family with a tokenizer like its own, saved as transformers saves
    it.
    """
    build_tiny_tokenizer(folder)
    tokenizer: Any = hf.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(3)
    if family == "gpt2":  # as DialoGPT: one special token, no template
        tokenizer = hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>", bos_token="<|end|>"
        )
        model: Any = hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=384,
                n_positions=256,
                n_embd=64,
                n_layer=2,
                n_head=4,
                bos_token_id=1,
                eos_token_id=1,
            )
        )
    elif family == "t5":
        tokenizer = hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            eos_token="<|end|>",
            pad_token="<|pad|>",
            additional_special_tokens=[f"<extra_id_{i}>" for i in range(12)],
        )
        model = hf.T5ForConditionalGeneration(
            hf.T5Config(
                vocab_size=400,
                d_model=64,
                d_kv=16,
                d_ff=128,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                decoder_start_token_id=0,
                pad_token_id=0,
                eos_token_id=1,
            )
        )
    else:
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2} if family == "minimax_m2" else {}
        sizes = {"word_embed_proj_dim": 64, "ffn_dim": 128} if family == "opt" else {}
        config = hf.AutoConfig.for_model(family, **SHAPE, **experts, **sizes)
        config.tie_word_embeddings = family in ("qwen2", "gemma2", "gemma3_text")
        model = hf.AutoModelForCausalLM.from_config(config)
        if experts:
            with torch.no_grad():
                for key, p in model.named_parameters():
                    if "experts" in key:
                        p.normal_(std=0.1)
    model.save_pretrained(folder)
    if family in ("gpt2", "t5"):
        (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny model, built once."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = build_tiny(tmp_path_factory.mktemp(family), family)
        return made[family]

    return folder


def train(engine: Engine, kind: str, dataset: str, **changes: Any) -> str:
    """Trains an adapter for two steps and returns its id."""
    run = engine.runs.wait(
        engine.runs.start(TrainSpec(kind=kind, name=kind, dataset=dataset, **{**SMALL, **changes})), 120
    )
    assert run.status is RunStatus.DONE, run.error
    return run.adapter


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", [*FAMILIES, *STRANGERS])
def test_every_family_trains_is_saved_and_mixes_after_a_restart(
    family: str, quantization: str, base_of: Any, corpus: Path, pairs: Path, tmp_path: Path
) -> None:
    folder = base_of(family)
    with Engine(tmp_path / "ws", str(folder), quantization, "cpu") as engine:
        text, questions = (
            engine.datasets.import_files([corpus], "text"),
            engine.datasets.import_files([pairs], "questions"),
        )
        domain = train(engine, "domain", text.id)
        task = train(engine, "task", questions.id, stack_on=domain)
        said = engine.bases.current(wait=True)
        assert said.quantization == quantization and not said.error
        assert bool(said.note) == (family in (*STRANGERS, "t5", "minimax_m2"))
    targets = {m.rpartition(".")[2] for m in engine.library.adapter(task).target_modules}
    linear = {
        "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
        "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    }
    assert targets == (set(FAMILIES[family].targets) if family in FAMILIES else linear[family]), (
        "every layer of the row; of a stranger, every linear one but the head"
    )
    for adapter in (domain, task):
        with safe_open(str(tmp_path / "ws" / "adapters" / adapter / WEIGHTS), framework="pt") as f:
            assert any(bool(f.get_tensor(k).any()) for k in f.keys() if "lora_B" in k), "training changed B"  # noqa: SIM118
        wanted = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
        assert (
            json.loads((tmp_path / "ws" / "adapters" / adapter / CONFIG).read_text())["task_type"] == wanted
        )

    mixes = [
        Mix(),
        Mix(weights={domain: 1.0}),
        Mix(weights={task: 1.0}),
        Mix(weights={domain: 0.5, task: -1.0}),
    ]
    with Engine(tmp_path / "ws", str(folder), quantization, "cpu") as engine:
        frame = engine.chat.stream("Where is the red lamp?", mixes, Sampling(max_new_tokens=6)).last()
        assert [c.stamp["weights"] for c in frame.columns] == [m.weights for m in mixes] and all(
            c.done for c in frame.columns
        )
        furthest = engine.worker.call(lambda: _apart(engine.resident_base.get(), mixes))
        assert furthest <= 5e-5, "a row of the batch equals peft's sum"


def _apart(resident: Resident, mixes: list[Mix]) -> float:
    """The largest difference of a logit between rows of one batch and peft under each mix alone."""
    ids = torch.randint(5, 380, (len(mixes), 7), generator=torch.Generator().manual_seed(3))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with unpack_for_backward(resident.base.model):  # bitsandbytes' packed kernel rounds to bf16
        with inference_mode_for(resident, resident.rows(mixes)):
            ours = logits(resident.base.model, given)
        apart = 0.0
        for b, row in enumerate(resident.rows(mixes)):
            with by_peft(resident.mixer, row):
                apart = max(apart, float((logits(resident.base.model, given)[b] - ours[b]).abs().max()))
        assert (ours[1] - logits_of(resident, ids)[1]).abs().max() > 1e-3, (
            "and the adapters change the logits"
        )
    return apart


def logits_of(resident: Resident, ids: torch.Tensor) -> torch.Tensor:
    with inference_mode_for(resident, resident.rows([Mix()])):
        return logits(resident.base.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


# --- encoder and decoder


@pytest.fixture(scope="module")
def t5(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Resident:
    """T5 with two adapters that move its logits, "one" and "two"."""
    resident = Resident(
        load_base(str(base_of("t5")), "none", "cpu"), Workspace(tmp_path_factory.mktemp("ws"))
    )
    add_random_adapters(resident, {"one": (4, 8), "two": (3, 6)})
    return resident


def add_random_adapters(resident: Resident, shapes: dict[str, tuple[int, int]]) -> None:
    dice = torch.Generator().manual_seed(11)
    for name, (rank, alpha) in shapes.items():
        resident.add_adapter(
            name,
            {
                "r": rank,
                "lora_alpha": alpha,
                "target_modules": list(resident.base.family.targets),
                "task_type": resident.base.family.task_type,
            },
        )
        resident.digests[name] = "test"
    with torch.no_grad():
        for key, p in resident.base.model.named_parameters():
            if "lora_" in key:
                p.copy_(torch.randn(p.shape, generator=dice) * 0.1)
    resident.update_layout()


MIXES = [Mix(), Mix(weights={"one": 1.0}), Mix(weights={"one": 0.5, "two": -1.0}), Mix(weights={"two": 1.0})]


def test_spans_hide_a_seventh_and_with_the_rest_restore_the_text(t5: Resident) -> None:
    tokenizer = t5.base.tokenizer
    marks = sides.sentinel_ids(tokenizer)
    assert len(marks) == 12
    for length in (2, 3, 9, 40, 200):
        ids = [20 + i for i in range(length)]
        target, mask, source = sides.corrupt_spans(tokenizer, ids, sides.content_generator(ids))
        assert target[0] == 0 and mask == [0] + [1] * (len(target) - 1) and target[-1] == source[-1] == 1
        hidden = [i for i in target if i not in marks][1:-1]
        assert len(hidden) == max(1, round(0.15 * length)), "15 % of the tokens (arXiv 1910.10683)"
        gaps: dict[int, list[int]] = {}
        for token in target[1:-1]:
            if token in marks:
                gap = gaps.setdefault(token, [])
            else:
                gap.append(token)
        filled = [t for token in source[:-1] for t in (gaps[token] if token in marks else [token])]
        assert filled == ids and not gaps[max(gaps, key=marks.index)], "the last sentinel ends the answer"
    assert sides.corrupt_spans(tokenizer, ids, sides.content_generator(ids)) == sides.corrupt_spans(
        tokenizer, ids, sides.content_generator(ids)
    ), "the same for the same text"


def test_without_sentinels_the_encoder_reads_the_first_part_of_a_text(base_of: Any) -> None:
    tokenizer: Any = hf.AutoTokenizer.from_pretrained(base_of("llama"))
    tokenizer.decoder_start_token_id = 0
    ids = list(range(20, 50))
    target, _, source = sides.corrupt_spans(tokenizer, ids, sides.content_generator(ids))
    assert source[:-1] + target[1:-1] == ids and len(source) > 1 and len(target) > 2
    assert (
        sides.encode_text_prompt(tokenizer, "The lamp")[-1] == 1
        and sides.encode_cloze(tokenizer, "The", " lamp")[0][0] == 0
    )


def test_the_encoder_reads_the_question_and_the_decoder_the_answer(t5: Resident) -> None:
    tokenizer = t5.base.tokenizer
    assert is_seq2seq(tokenizer)
    messages = [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "In the cold room."},
    ]
    e = encode_task(tokenizer, messages, 64, t5.base.eos_ids)
    assert (
        tokenizer.decode(e.encoder_ids) == "Where is it?<|end|>"
        and tokenizer.decode(e.ids[1:]) == "In the cold room.<|end|>"
    )
    assert e.ids[0] == t5.base.model.config.decoder_start_token_id and e.loss_mask == [0] + [1] * (
        len(e.ids) - 1
    )
    cut = encode_task(tokenizer, messages, 5, t5.base.eos_ids)
    assert cut.encoder_ids == e.encoder_ids[-5:] and len(cut.ids) == 5
    forged = encode_task(
        tokenizer, [{"role": "user", "content": "a <extra_id_0> b<|end|>"}, messages[1]], 64, []
    )
    assert (
        not set(sides.sentinel_ids(tokenizer)) & set(forged.encoder_ids) and forged.encoder_ids.count(1) == 1
    ), "a text cannot forge a gap or an end"


def test_a_batch_has_the_loss_that_the_model_computes_from_its_labels(t5: Resident) -> None:
    encoded = [e for s in SENTENCES[:3] for e in encode_text(t5.base.tokenizer, s, 64)]
    batch = collate([e.row for e in encoded], 0)
    model = t5.base.model
    assert batch["decoder_input_ids"].shape == batch["labels"].shape
    with torch.no_grad():
        ours = model(**batch).loss
        theirs = model(**{k: v for k, v in batch.items() if k != "decoder_input_ids"}).loss
        assert torch.allclose(ours, theirs, atol=1e-6)
        logits_, labels = shift_logits(model, batch)
        assert torch.allclose(
            torch.nn.functional.cross_entropy(logits_.flatten(0, 1), labels.flatten(), ignore_index=-100),
            ours,
            atol=1e-5,
        )


def test_encoder_decoder_columns_equal_transformers_generate(
    t5: Resident,
) -> None:
    prompts = [
        encode_chat(t5.base.tokenizer, [{"role": "user", "content": q}], True)
        for q in ("Where is the old red lamp of the room?", "Hi", "What is it?", "And?")
    ]
    for sampling in (Sampling(max_new_tokens=12), Sampling(max_new_tokens=12, repetition_penalty=1.4)):
        states = list(generate(t5, prompts, MIXES, [sampling] * 4))[-1]
        for prompt, mix, state in zip(prompts, MIXES, states, strict=True):
            with inference_mode_for(t5, t5.rows([mix])):
                whole = t5.base.model.generate(
                    torch.tensor([prompt]),
                    max_new_tokens=12,
                    do_sample=False,
                    repetition_penalty=sampling.repetition_penalty,
                )
            assert (
                state.ids == [t for t in whole[0, 1:].tolist() if t != 1]
                and state.stamp["weights"] == mix.weights
            )
    assert len({tuple(w.ids) for w in states}) > 2


def test_a_mix_change_makes_the_encoder_read_the_prompt_again(t5: Resident) -> None:
    prompts = [
        encode_text_prompt(t5.base.tokenizer, "The red lamp"),
        encode_text_prompt(t5.base.tokenizer, "An old clock of the north room"),
    ]
    desk = [MIXES[0], MIXES[1]]
    steps = generate(
        t5, prompts, list(desk), [Sampling(max_new_tokens=10), Sampling(max_new_tokens=14)], lambda: desk
    )
    for _ in range(3):
        states = next(steps)
    before = list(states[1].ids)
    desk[1] = MIXES[2]
    *_, states = steps
    assert len(before) == 3 and states[1].ids[:3] == before
    given = {
        "input_ids": torch.tensor([prompts[1]]),
        "decoder_input_ids": torch.tensor([[0, *states[1].ids[:-1]]]),
    }
    with inference_mode_for(t5, t5.rows([MIXES[2]])):
        expected = t5.base.model(**given, use_cache=False).logits[0].argmax(-1).tolist()
    assert states[1].ids[3:] == expected[3:], "every later token is the new mix's, of the whole prompt"
    assert [turn.tokens for turn in states[1].column(t5.base.tokenizer).mix_changes] == [3] and not states[
        0
    ].column(t5.base.tokenizer).mix_changes


def test_mixes_score_like_peft_one_by_one_in_nats_per_token(t5: Resident) -> None:
    sequences = [e for s in SENTENCES[:5] for e in encode_text(t5.base.tokenizer, s, 64)]
    *_, (done, scores) = score(t5, sequences, MIXES)
    assert done == len(sequences) and scores[0].tokens == sum(sum(e.loss_mask) for e in sequences)
    for mix, found in zip(MIXES, scores, strict=True):
        nats = 0.0
        for e in sequences:
            batch = collate([e.row], 0)
            with by_peft(t5.mixer, t5.rows([mix])[0]):
                nats += float(t5.base.model(**batch).loss) * sum(e.loss_mask)
        assert found.nats == pytest.approx(nats, rel=1e-4)


def test_an_encoder_decoder_is_measured_like_any_base(t5: Resident) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Where is it, {i}?"}, {"role": "assistant", "content": s}]}
        for i, s in enumerate(SENTENCES[:4])
    ]
    material = EvaluationData(
        questions={"": rows},
        texts={"": SENTENCES[:4]},
        cloze=[("The red lamp is kept in the", " north room.")],
    )
    *_, figures = measure(t5, MIXES[:2], material, 64, 8)
    assert {"perplexity", "answer_perplexity", "exact_match", "f1", "recall"} <= set(figures[0]) and figures[
        0
    ]["nats"] != figures[1]["nats"]
    assert all(len(f["examples"]) == 4 for f in figures)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "gpt2", "minimax_m2"])
def test_every_analysis_works_on_other_architectures(
    family: str, base_of: Any, corpus: Path, pairs: Path, tmp_path: Path
) -> None:
    with Engine(tmp_path, str(base_of(family)), "none", "cpu") as engine:
        text, questions = (
            engine.datasets.import_files([corpus], "text").id,
            engine.datasets.import_files([pairs], "questions").id,
        )
        domain = train(engine, "domain", text)
        task = train(engine, "task", questions, stack_on=domain)
        mix = Mix(weights={domain: 1.0, task: 0.5})
        told = (
            engine.analysis.attribution("Where is the red lamp?", mix, answer="In the north room.")
            .last()
            .attribution
        )
        assert set(told.without) == {domain, task} and max(abs(n) for n in told.joint) > 1e-3
        alone = (
            engine.analysis.attribution(
                "Where is the red lamp?", Mix(weights={domain: 1.0}), answer="In the north room."
            )
            .last()
            .attribution
        )
        assert alone.full == pytest.approx(told.without[task], abs=1e-4) and alone.base == pytest.approx(
            told.base, abs=1e-4
        )
        met = engine.analysis.interference(mix, ["Where is the red lamp?"]).last()
        assert {m.module.rpartition(".")[2] for m in met.pairs[0].modules} == set(
            FAMILIES[family].targets
        ) and met.outputs.divergence_from_base > 0
        found = engine.analysis.search_weights([domain, task], questions, limit=8).last().comparison.results
        assert (
            found[0].name == "gradient"
            and found[0].validation_loss
            <= min(f.validation_loss for f in found if f.name in ("sum", "single")) + 1e-6
        )
        spec = {"concat": 8, "svd": 4}
        for method, rank in spec.items():
            baked = engine.library.bake(mix, BakeSpec(name=method, method=method)).last()
            assert baked.rank == rank and (method == "svd" or baked.changed < 1e-9)
            assert method == "svd" or baked.logit_difference < 1e-4, "concatenation is exact"


# --- experts


def test_4_bit_experts_take_an_eighth_and_compute_their_values(base_of: Any) -> None:
    full, packed = (
        load_base(str(base_of("minimax_m2")), "none", "cpu"),
        load_base(str(base_of("minimax_m2")), "nf4", "cpu"),
    )
    paths = experts.weight_shapes(full.model)
    assert (
        len(paths) == 4
        and paths == experts.weight_shapes(packed.model)
        and full.parameters == packed.parameters
    )
    numbers = sum(p.numel() for k, p in full.model.named_parameters() if k in paths)
    held = sum(
        p.numel() * p.element_size() for k, p in packed.model.named_parameters() if "parametrizations" in k
    )
    assert numbers / held == pytest.approx(2.0), "two values per byte"
    assert packed.model.get_memory_footprint() < 0.35 * full.model.get_memory_footprint()
    with torch.no_grad():
        for path in paths:
            exact, rounded = (
                full.model.get_parameter(path),
                getattr(packed.model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]),
            )
            assert 0 < (exact - rounded).norm() / exact.norm() < 0.12
            exact.copy_(rounded)
        for (
            key,
            module,
        ) in packed.model.named_modules():  # and the same attention, so that only the experts' way differs
            if hasattr(module.weight if hasattr(module, "weight") else None, "quant_state"):
                full.model.get_submodule(key).weight.copy_(
                    bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                )
        ids = torch.randint(5, 380, (2, 9), generator=torch.Generator().manual_seed(1))
        with unpack_for_backward(packed.model):
            assert (full.model(ids).logits - packed.model(ids).logits).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_expert_adapters_are_optional_state_their_size_and_mix(
    quantization: str, base_of: Any, corpus: Path, pairs: Path, tmp_path: Path
) -> None:
    with Engine(tmp_path / "ws", str(base_of("minimax_m2")), quantization, "cpu") as engine:
        text, questions = (
            engine.datasets.import_files([corpus], "text"),
            engine.datasets.import_files([pairs], "questions"),
        )
        domain = train(engine, "domain", text.id, experts=True)
        task = train(engine, "task", questions.id, experts=True, stack_on=domain)
        said = next(
            e["text"]
            for r in engine.runs.list()
            if r.adapter == domain
            for e in engine.runs.events(r.id)[0]
            if e["kind"] == "note"
        )
        a_rank = engine.bases.current().expert_weights
        assert (
            a_rank == 2 * 4 * ((256 + 64) + (64 + 128))
            and f"{4 * a_rank:,} trainable weights" in said
            and "mixed live" in said
        )
    config = json.loads((tmp_path / "ws" / "adapters" / domain / CONFIG).read_text())
    assert config["target_parameters"] == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    with safe_open(str(tmp_path / "ws" / "adapters" / domain / WEIGHTS), framework="pt") as f:
        found = [f.get_tensor(k) for k in f.keys() if "experts" in k]  # noqa: SIM118
        assert sum(t.numel() for t in found) == 4 * a_rank and all(bool(t.any()) for t in found), (
            "as many as was said, and all of them learned"
        )
    mixes = [
        Mix(),
        Mix(weights={domain: 1.0}),
        Mix(weights={task: 1.0}),
        Mix(weights={domain: 0.5, task: -1.0}),
    ]
    with Engine(tmp_path / "ws", str(base_of("minimax_m2")), quantization, "cpu") as engine:
        frame = engine.chat.stream("Where is the red lamp?", mixes, Sampling(max_new_tokens=4)).last()
        assert [c.stamp["weights"] for c in frame.columns] == [m.weights for m in mixes]
        assert engine.worker.call(lambda: _apart(engine.resident_base.get(), mixes)) <= 5e-5
        packed = engine.worker.call(
            lambda: [
                len(p)
                for k, m in engine.resident_base.get().base.model.named_modules()
                if k.endswith("parametrizations")
                for p in m.values()
            ]
        )
        assert packed == ([1] * 4 if quantization == "nf4" else []), (
            "nothing of peft's stays on packed weights"
        )
        with pytest.raises(AdapterError, match="Mix it live"):
            engine.analysis.interference(mixes[3], ["The lamp"]).last()


def test_expert_training_needs_experts_and_no_dropout(base_of: Any, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Set LoRA dropout to 0"):
        TrainSpec(experts=True)
    with Engine(tmp_path / "ws", str(base_of("llama")), "none", "cpu") as engine:
        text = engine.datasets.import_files([corpus], "text")
        run = engine.runs.wait(
            engine.runs.start(TrainSpec(name="x", dataset=text.id, **SMALL, experts=True)), 60
        )
        assert run.status is RunStatus.FAILED and "has no experts. Switch off" in run.error


def test_an_fp8_checkpoint_is_refused_with_a_workaround(base_of: Any, tmp_path: Path) -> None:
    shutil.copytree(base_of("minimax_m2"), tmp_path / "fp8")
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    (tmp_path / "fp8" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        BaseModelError,
        match=r"already quantized \(fp8\).*16-bit copy once.*FineGrainedFP8Config\(dequantize=True\)",
    ):
        load_base(str(tmp_path / "fp8"), "nf4", "cpu")


# --- 8 bits


@pytest.mark.slow
def test_an_8_bit_base_trains_and_mixes_like_pefts(base_of: Any, corpus: Path, tmp_path: Path) -> None:
    with Engine(tmp_path / "ws", str(base_of("llama")), "int8", "cpu") as engine:
        text = engine.datasets.import_files([corpus], "text")
        one = train(engine, "domain", text.id)
        two = train(engine, "domain", text.id, seed=2)
        mixes = [Mix(), Mix(weights={one: 1.0}), Mix(weights={two: 1.0}), Mix(weights={one: 0.5, two: -1.0})]
        frame = engine.chat.stream("Where?", mixes, Sampling(max_new_tokens=4)).last()
        assert [c.stamp["weights"] for c in frame.columns] == [
            m.weights for m in mixes
        ] and engine.bases.current().quantization == "int8"
        assert engine.worker.call(lambda: _apart(engine.resident_base.get(), mixes)) <= 5e-5
        kinds = engine.worker.call(
            lambda: {type(m).__name__ for m in engine.resident_base.get().base.model.modules()}
        )
        assert "Linear8bitLt" in kinds


# --- presets


def sections(folder: Path, form: str) -> Path:
    folder.mkdir()
    for i, sentence in enumerate(SENTENCES[:24]):
        if form == "markdown":
            (folder / f"{i}.md").write_text(f"# Part {i}\n\n{sentence}\n")
        else:
            parts = [{"heading": "One", "text": sentence}, {"heading": "Two", "text": sentence[::-1]}]
            (folder / f"{i}.json").write_text(json.dumps({"title": f"Part {i}", "sections": parts}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("form", ["markdown", "json"])
def test_a_folder_of_sections_becomes_a_mistral_adapter_by_its_preset(
    form: str, base_of: Any, tmp_path: Path
) -> None:
    preset = PRESETS["mistral-7b-qlora"]
    with Engine(tmp_path / "ws", str(base_of("mistral")), preset.quantization, "cpu") as engine:
        # Beside the texts the JSON files hold headings, so that the user confirms what is learned.
        roles = {"text": "text"} if form == "json" else None
        data = engine.datasets.import_files([sections(tmp_path / "in", form)], "sections", roles=roles)
        assert data.kind == "domain" and data.rows == (24 if form == "markdown" else 48)
        spec = resolve(
            "domain", preset.name, {"name": "x", "dataset": data.id, "max_length": 256}
        )  # what the tiny twin reads
        assert (
            spec.rank,
            spec.alpha,
            spec.dropout,
            spec.learning_rate,
            spec.batch_size,
            spec.accumulation,
            spec.epochs,
        ) == (16, 32, 0.05, 2e-4, 4, 4, 3.0)
        assert (
            resolve("domain", preset.name, {}).max_length == 512
            and engine.bases.current(wait=True).quantization == "nf4"
        )
        run = engine.runs.wait(engine.runs.start(spec), 120)
        assert run.status is RunStatus.DONE, run.error
        assert set(engine.library.adapter(run.adapter).target_modules) == {
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        }
        assert suggest_preset(engine) == preset.name


@pytest.mark.slow
def test_turns_of_a_dialogue_become_a_dialogpt_adapter_by_its_preset(base_of: Any, tmp_path: Path) -> None:
    speak = [[f"Hello {i}", "Hi!", f"Where is the {s.split()[2]}?", s] for i, s in enumerate(SENTENCES[:24])]
    rows = [
        {"messages": [{"role": ("user", "assistant")[j % 2], "content": t} for j, t in enumerate(turns)]}
        for turns in speak
    ]
    (tmp_path / "turns.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with Engine(tmp_path / "ws", str(base_of("gpt2")), "none", "cpu") as engine:
        data = engine.datasets.import_files([tmp_path / "turns.jsonl"], "turns")
        spec = resolve("task", "dialogpt", {"name": "x", "dataset": data.id})
        assert (
            spec.rank,
            spec.alpha,
            spec.dropout,
            spec.learning_rate,
            spec.batch_size,
            spec.epochs,
            spec.max_length,
        ) == (16, 32, 0.1, 2e-4, 4, 3.0, 256)
        run = engine.runs.wait(engine.runs.start(spec), 120)
        assert run.status is RunStatus.DONE, run.error
        assert suggest_preset(engine) == "dialogpt"
        pieces = engine.datasets.example_tokens(data.id, 0, 256)
        text, trained = "".join(p.text for p in pieces), "".join(p.text for p in pieces if p.trained)
        assert text.count("<|end|>") == 4 and trained.endswith("<|end|>") and trained.count("<|end|>") == 2, (
            "turns joined by eos; every answer is learned, with its eos"
        )


def test_gpt2_pads_with_eos_and_masks_by_attention(base_of: Any) -> None:
    tokenizer = load_base(str(base_of("gpt2")), "none", "cpu").tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    long, short = EncodedSequence([5, 1, 6, 1], [0, 1, 1, 1]), EncodedSequence([7, 1], [0, 1])
    batch = collate([long.row, short.row], tokenizer.pad_token_id)
    assert batch["labels"].tolist() == [[-100, 1, 6, 1], [-100, 1, -100, -100]] and batch[
        "attention_mask"
    ].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
