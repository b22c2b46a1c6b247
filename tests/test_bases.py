"""Every base of the families table, built small and saved to disk: loaded, trained, kept, reloaded, mixed and asked through the engine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from core.data import pairs
from core.data.batches import Encoded, collate, encode_chat, encode_opening, encode_task, encode_text, reads_apart
from core.engine import Engine
from core.errors import BaseModelError, SpecError
from core.evaluate.measure import Material, measure
from core.library import CONFIG, WEIGHTS
from core.model.base import differentiable, load_base
from core.model.families import FAMILIES
from core.model.generate import generate, speaking
from core.model.resident import Resident
from core.model.scoring import score
from core.model.stepping import predicted
from core.spec import PRESETS, Mix, RunStatus, Sampling, TrainSpec, resolve
from core.workspace import Workspace
from tests.conftest import SENTENCES, build_tiny_tokenizer
from tests.test_families import by_peft, logits

SHAPE: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 256, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 1,
}  # fmt: skip
STRANGERS = ("gpt_neox", "opt")  # no row in the table
SMALL: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "accumulation": 1, "max_length": 48, "rank": 4, "alpha": 8, "dropout": 0.0, "learning_rate": 0.02, "eval_steps": 2}


def build_tiny(folder: Path, family: str) -> Path:
    """A random model of two layers of a family with a tokenizer like its own, saved as transformers saves it."""
    build_tiny_tokenizer(folder)
    tokenizer: Any = hf.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(3)
    if family == "gpt2":  # as DialoGPT: one special token, no template
        tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>", bos_token="<|end|>")
        model: Any = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=384, n_positions=256, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1))
    elif family == "t5":
        tokenizer = hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>", pad_token="<|pad|>", additional_special_tokens=[f"<extra_id_{i}>" for i in range(12)]
        )
        model = hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=400, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
        )  # fmt: skip
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
    run = engine.wait_run(engine.start_run(TrainSpec(kind=kind, name=kind, dataset=dataset, **{**SMALL, **changes})), 120)
    assert run.status is RunStatus.DONE, run.error
    return run.adapter


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", [*FAMILIES, *STRANGERS])
def test_a_base_learns_is_kept_and_mixes_after_a_restart(family: str, quantization: str, base_of: Any, corpus: Path, pairs: Path, tmp_path: Path) -> None:
    folder = base_of(family)
    with Engine(tmp_path / "ws", str(folder), quantization, "cpu") as engine:
        text, questions = engine.import_dataset([corpus], "text"), engine.import_dataset([pairs], "questions")
        domain = train(engine, "domain", text.id)
        task = train(engine, "task", questions.id, stack_on=domain)
        said = engine.base(wait=True)
        assert said.quantization == quantization and not said.error
        assert bool(said.note) == (family in (*STRANGERS, "t5", "minimax_m2"))
    targets = set(engine.adapter(task).target_modules)
    linear = {"gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}, "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}}
    assert targets == (set(FAMILIES[family].targets) if family in FAMILIES else linear[family]), "every layer of the row; of a stranger, every linear one but the head"
    for adapter in (domain, task):
        with safe_open(str(tmp_path / "ws" / "adapters" / adapter / WEIGHTS), framework="pt") as f:
            assert any(bool(f.get_tensor(k).any()) for k in f.keys() if "lora_B" in k), "it learned"  # noqa: SIM118
        wanted = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
        assert json.loads((tmp_path / "ws" / "adapters" / adapter / CONFIG).read_text())["task_type"] == wanted

    mixes = [Mix(), Mix(weights={domain: 1.0}), Mix(weights={task: 1.0}), Mix(weights={domain: 0.5, task: -1.0})]
    with Engine(tmp_path / "ws", str(folder), quantization, "cpu") as engine:
        frame = engine.stream("Where is the red lamp?", mixes, Sampling(max_new_tokens=6)).last()
        assert [c.stamp["weights"] for c in frame.columns] == [m.weights for m in mixes] and all(c.done for c in frame.columns)
        furthest = engine._worker.call(lambda: _apart(engine._resident(), mixes))
        assert furthest <= 2e-5, "a row of the batch is peft's own sum"


def _apart(resident: Resident, mixes: list[Mix]) -> float:
    """The largest difference of a logit between rows of one batch and peft under each mix alone."""
    ids = torch.randint(5, 380, (len(mixes), 7), generator=torch.Generator().manual_seed(3))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with differentiable(resident.base.model):  # bitsandbytes' packed kernel rounds to bf16
        with speaking(resident, resident.rows(mixes)):
            ours = logits(resident.base.model, given)
        apart = 0.0
        for b, row in enumerate(resident.rows(mixes)):
            with by_peft(resident.mixer, row):
                apart = max(apart, float((logits(resident.base.model, given)[b] - ours[b]).abs().max()))
        assert (ours[1] - logits_of(resident, ids)[1]).abs().max() > 1e-3, "and the adapters say something"
    return apart


def logits_of(resident: Resident, ids: torch.Tensor) -> torch.Tensor:
    with speaking(resident, resident.rows([Mix()])):
        return logits(resident.base.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
