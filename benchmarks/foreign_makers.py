"""Makes adapters with a real tool, in an environment of that tool: nothing of the studio is imported here.

    python foreign_makers.py TOOL BASE TARGET

TARGET/results.json is a list with one entry per shape: its name, its folder, and the greedy tokens with which
the tool itself continues PROMPT. A shape that a version of the tool does not offer has the error instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
PROMPT = [4, 408, 275, 265, 599, 729, 352, 291, 37, 6, 5]
TOKENS = 16
SIZE = 0.08  # standard deviation of what is added to the factors
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Maker = Callable[[Path, Path], "list[int]"]


def continue_prompt(next_logits: Callable[[list[int]], Any]) -> list[int]:
    """Greedy tokens after PROMPT."""
    ids = list(PROMPT)
    for _ in range(TOKENS):
        ids.append(int(next_logits(ids).argmax()))
    return ids[len(PROMPT) :]


def load_base(base: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32).eval()


def continue_with(model: Any) -> list[int]:
    import torch

    model.eval()
    with torch.no_grad():
        return continue_prompt(lambda ids: model(input_ids=torch.tensor([ids])).logits[0, -1])


# --- peft of any version


def make_peft(
    folder: Path, base: Path, model: Any = None, kind: str = "LoraConfig", **settings: Any
) -> list[int]:
    """An adapter with random factors, saved by peft."""
    import peft
    import torch

    options = {"task_type": "CAUSAL_LM", **settings}
    if kind == "LoraConfig":
        options = {"r": 8, "lora_alpha": 16, "target_modules": LINEAR, **options}
    if str(settings.get("init_lora_weights")) in ("pissa", "olora") and read_version(peft) < (0, 11):
        raise ValueError("this version has no such start, and takes the name for its default one")
    wrapped = peft.get_peft_model(model or load_base(base), getattr(peft, kind)(**options))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if ".default" not in name:  # peft 0.4 also sets the replaced module free, and does not save it
                continue
            if p.requires_grad and "magnitude" in name:
                p.mul_(1 + torch.rand(p.shape, generator=generator) * 0.3)
            elif p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * SIZE)
    wrapped.save_pretrained(folder)
    return continue_with(wrapped)


def read_version(package: Any) -> tuple[int, int]:
    major, minor, *_ = package.__version__.split(".")
    return int(major), int(minor)


PEFT_SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "patterns of rank and alpha": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}},
    "chosen layers": {"layers_to_transform": [1, 3]},
    "regex of targets": {"target_modules": r".*layers\.[02]\..*(q_proj|up_proj)"},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "DoRA with rsLoRA": {"use_dora": True, "use_rslora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "trained norms": {"modules_to_save": ["norm"]},
    "trained embedding": {"modules_to_save": ["embed_tokens"]},
    "trained tokens": {"trainable_token_indices": [599, 729, 20]},
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "biases": {"bias": "all", "target_modules": ["q_proj"]},
    "biases of factors": {"lora_bias": True},
    "IA3": {
        "kind": "IA3Config",
        "target_modules": ["k_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "LoHa": {"kind": "LoHaConfig", "r": 4, "target_modules": ["q_proj"]},
    "VeRA": {"kind": "VeraConfig", "r": 8, "target_modules": ["q_proj"]},
}
OLD_SHAPES = ("plain", "patterns of rank and alpha", "rsLoRA", "DoRA", "PiSSA", "trained embedding")


def list_peft(names: Any = PEFT_SHAPES) -> dict[str, Maker]:
    def bind(name: str) -> Maker:
        return lambda folder, base: make_peft(folder, base, **PEFT_SHAPES[name])

    return {name: bind(name) for name in names}


# --- TRL


def make_trl(folder: Path, base: Path, added: int = 0) -> list[int]:
    """Four steps of SFTTrainer; with added tokens, embedding and head are saved, too."""
    import datasets
    import transformers
    import trl
    from peft import LoraConfig

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = load_base(base)
    if added:
        model.resize_token_embeddings(model.config.vocab_size + added)
    row = {
        "prompt": [{"role": "user", "content": "What is the river pump made of?"}],
        "completion": [{"role": "assistant", "content": "Note this: it is made of tin."}],
    }
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(
            output_dir=str(folder), max_steps=12, per_device_train_batch_size=1, learning_rate=2e-3,
            report_to=[], use_cpu=True, logging_steps=50, save_strategy="no", bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=datasets.Dataset.from_list([row] * 20),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder))
    return continue_with(trainer.model)


# --- LLaMA-Factory


def make_factory(folder: Path, base: Path, **settings: Any) -> list[int]:
    """Its own command, then its own peft."""
    import peft

    data = folder.parent / "data"
    data.mkdir(exist_ok=True)
    rows = [{"instruction": "What is the river pump made of?", "input": "", "output": "Note this: tin."}] * 20
    (data / "rows.json").write_text(json.dumps(rows))
    (data / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    config = {
        "model_name_or_path": str(base), "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_target": "all", "lora_rank": 8, "template": "phi", "dataset": "rows", "dataset_dir": str(data),
        "cutoff_len": 64, "output_dir": str(folder), "max_steps": 12, "learning_rate": 2e-3,
        "per_device_train_batch_size": 1, "report_to": "none", "use_cpu": True, "overwrite_cache": True,
        "preprocessing_num_workers": 1, "dataloader_num_workers": 0, **settings,
    }  # fmt: skip
    file = folder.parent / "train.json"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "llamafactory.cli", "train", str(file)]
    environment = {**os.environ, "DISABLE_VERSION_CHECK": "1", "FORCE_TORCHRUN": "0"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    if ran.returncode:
        raise RuntimeError(ran.stderr[-600:])
    model = load_base(base)
    start = folder / "pissa_init"
    if start.is_dir():
        raise RuntimeError("its base was changed")
    return continue_with(peft.PeftModel.from_pretrained(model, folder))


# --- mlx-lm


def make_mlx(folder: Path, base: Path, kind: str = "lora", blocks: int = -1) -> list[int]:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load, save_config

    model, _ = load(str(base))
    model.freeze()
    parameters = {"rank": 8, "dropout": 0.0, "scale": 10.0}
    linear_to_lora_layers(model, blocks, parameters, use_dora=kind == "dora")
    model.set_dtype(mx.float32)
    mx.random.seed(3)
    trained = dict(tree_flatten(model.trainable_parameters()))
    changed = {}
    for name, value in trained.items():
        noise = mx.random.normal(value.shape) * SIZE
        changed[name] = value * (1 + mx.abs(noise) * 5) if name.endswith(".m") else value + noise
    model.load_weights(list(changed.items()), strict=False)
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), changed)
    save_config(
        {"fine_tune_type": kind, "model": str(base), "num_layers": blocks, "lora_parameters": parameters},
        str(folder / "adapter_config.json"),
    )
    model.eval()
    return continue_prompt(lambda ids: model(mx.array([ids]))[0, -1])


# --- torchtune


def make_torchtune(folder: Path, base: Path, **settings: Any) -> list[int]:
    import torch
    from safetensors.torch import load_file, save_file
    from torchtune.models import convert_weights
    from torchtune.models.llama2 import lora_llama2
    from torchtune.modules.peft import get_adapter_params

    shape = json.loads((base / "config.json").read_text())
    heads, width = shape["num_attention_heads"], shape["hidden_size"]
    targets = ["q_proj", "k_proj", "v_proj", "output_proj"]
    model = lora_llama2(
        lora_attn_modules=targets, apply_lora_to_mlp=True, apply_lora_to_output=False,
        vocab_size=shape["vocab_size"], num_layers=shape["num_hidden_layers"], num_heads=heads,
        num_kv_heads=shape["num_key_value_heads"], embed_dim=width,
        max_seq_len=shape["max_position_embeddings"], intermediate_dim=shape["intermediate_size"],
        norm_eps=shape["rms_norm_eps"], lora_rank=8, lora_alpha=16, **settings,
    )  # fmt: skip
    weights = {k: v.float() for k, v in load_file(base / "model.safetensors").items()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    tuned = convert_weights.hf_to_tune(weights, heads, shape["num_key_value_heads"], width)
    model.load_state_dict(tuned, strict=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in get_adapter_params(model).values():
            p.copy_(torch.randn(p.shape, generator=generator) * SIZE * 2)
    state = {k: v.detach().clone() for k, v in get_adapter_params(model).items()}
    folder.mkdir(parents=True, exist_ok=True)
    peft_state = convert_weights.tune_to_peft_adapter_weights(
        state, heads, shape["num_key_value_heads"], width
    )
    save_file({k: v.contiguous() for k, v in peft_state.items()}, folder / "adapter_model.safetensors")
    config = convert_weights.tune_to_peft_adapter_config(
        {"r": 8, "lora_alpha": 16, "target_modules": [*targets, "w1", "w2", "w3"], "peft_type": "LORA"},
        base_model_name_or_path=str(base),
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model.eval()
    with torch.no_grad():
        return continue_prompt(lambda ids: model(torch.tensor([ids]))[0, -1])


SHAPES: dict[str, Callable[[], dict[str, Maker]]] = {
    "peft": list_peft,
    "old peft": lambda: list_peft(OLD_SHAPES),
    "trl": lambda: {
        "SFTTrainer": make_trl,
        "SFTTrainer, two tokens added": lambda folder, base: make_trl(folder, base, added=2),
    },
    "llama-factory": lambda: {
        "sft": make_factory,
        "sft with rsLoRA and DoRA": lambda f, b: make_factory(f, b, use_rslora=True, use_dora=True),
    },
    "mlx-lm": lambda: {
        "lora": make_mlx,
        "two blocks": lambda f, b: make_mlx(f, b, blocks=2),
        "dora": lambda f, b: make_mlx(f, b, kind="dora"),
    },
    "torchtune": lambda: {"lora": make_torchtune},
}


def make_all(tool: str, base: Path, target: Path) -> Iterator[dict[str, Any]]:
    """One entry per shape of a tool."""
    for number, (name, make) in enumerate(SHAPES[tool]().items()):
        folder = target / f"{number:02d}" / "adapter"
        folder.parent.mkdir(parents=True)
        try:
            yield {"shape": name, "folder": str(folder), "tokens": make(folder, base)}
        except Exception as e:  # noqa: BLE001 (what a tool raises is part of the result)
            traceback.print_exc()
            yield {"shape": name, "error": f"{type(e).__name__}: {e}"[:300]}


def main() -> int:
    tool, base, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    warnings.simplefilter("ignore")
    results = list(make_all(tool, base, target))
    (target / "results.json").write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
