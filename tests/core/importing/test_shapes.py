"""Adapters in the forms of many tools answer in a mix as the tool that made them does, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.engine import Engine
from core.model.generate import inference_mode_for
from core.spec.mix import Mix
from tests.conftest import build_tiny_llama
from tests.core.importing import makers
from tests.core.importing.makers import (
    ATTENTION,
    Made,
    change_config,
    make_gguf,
    make_mlx,
    make_peft,
    make_start,
    pack,
    read_config,
    rename_tensors,
    write_config,
)

PROMPT = [5, 9, 40, 77, 101, 12, 3, 260]
TOKENS = 12
Maker = Callable[[Path, Path], Made]
SHAPES: dict[str, tuple[str, Maker]] = {}
OPTIONAL = {"convert-dora"}  # repairs of what can be imported as it is
LOOSE = {"gguf in 16 bits", "bfloat16"}


def shape(name: str, base: str = "llama") -> Callable[[Maker], Maker]:
    """Registers a maker."""

    def register(maker: Maker) -> Maker:
        SHAPES[name] = (base, maker)
        return maker

    return register


@shape("peft 0.21")
def _plain(folder: Path, base: Path) -> Made:
    return Made(folder, make_peft(folder, base))


@shape("peft 0.4, pickled")
def _pickled(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, safe=False)
    old = ("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights",
           "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save",
           "peft_type", "r", "revision", "target_modules", "task_type")  # fmt: skip
    config = read_config(folder)
    write_config(folder, {"auto_mapping": None, **{k: config[k] for k in old}})
    return Made(folder, model)


@shape("patterns of rank and alpha")
def _patterns(folder: Path, base: Path) -> Made:
    model = make_peft(
        folder, base, rank_pattern={"q_proj": 2, "mlp.up_proj": 7}, alpha_pattern={"q_proj": 3, "v_proj": 16}
    )
    return Made(folder, model)


@shape("patterns that are regular expressions")
def _rules(folder: Path, base: Path) -> Made:
    model = make_peft(
        folder,
        base,
        alpha_pattern={r"layers\.0\.self_attn\.(q|k)_proj": 3, r"^model\.layers\.1\..*_proj": 16},
    )
    return Made(folder, model)


@shape("rsLoRA")
def _stabilized(folder: Path, base: Path) -> Made:
    return Made(folder, make_peft(folder, base, use_rslora=True, rank_pattern={"v_proj": 9}))


@shape("Unsloth")
def _unsloth(folder: Path, base: Path) -> Made:
    rule = r"(?:.*?(?:model).*?(?:layers).*?(?:self_attn|mlp).*?(?:q_proj|v_proj|up_proj).*?)"
    model = make_peft(folder, base, target_modules=rule)
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "x.y", "unsloth_fixed": True}
    change_config(folder, auto_mapping=mapping, base_model_name_or_path="unsloth/tiny-bnb-4bit")
    return Made(folder, model)


@shape("LLaMA-Factory")
def _factory(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, lora_dropout=0.1)
    for name in ("trainer_log.jsonl", "training_args.bin", "optimizer.pt", "rng_state.pth", "loss.png"):
        (folder / name).write_bytes(b"not read")
    return Made(folder, model)


@shape("axolotl")
def _axolotl(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, lora_dropout=0.05, target_modules=[*ATTENTION, "nowhere"])
    (folder / "README.md").write_text("---\ntags:\n- axolotl\n- generated_from_trainer\n---\n")
    make_peft(folder / "checkpoint-10", base, seed=9)
    return Made(folder, model)


@shape("torchtune")
def _torchtune(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, target_modules=ATTENTION)
    write_config(folder, {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "peft_type": "LORA"})
    return Made(folder, model)


@shape("mlx-lm")
def _mlx(folder: Path, base: Path) -> Made:
    return make_mlx(folder, base)


@shape("mlx-lm, chosen blocks")
def _mlx_blocks(folder: Path, base: Path) -> Made:
    return make_mlx(folder, base, layers="layers.1.self_attn", scale=7.5)


@shape("mlx-lm, DoRA")
def _mlx_dora(folder: Path, base: Path) -> Made:
    return make_mlx(folder, base, fine_tune_type="dora")


@shape("mlx-lm of early 2024, with alpha")
def _mlx_alpha(folder: Path, base: Path) -> Made:
    made = make_mlx(folder, base, scale=5.0)  # 2.5 x alpha 8 / rank 4
    settings = {"rank": 4, "alpha": 8.0, "scale": 2.5, "dropout": 0.0}
    change_config(folder, lora_parameters=settings)
    return Made(made.source, made.model, ("mlx-alpha",))


@shape("gguf of llama.cpp")
def _gguf(folder: Path, base: Path) -> Made:
    folder.mkdir()
    return make_gguf(folder / "style.gguf", base)


@shape("gguf without alpha")
def _gguf_alpha(folder: Path, base: Path) -> Made:
    folder.mkdir()
    return make_gguf(folder / "style.gguf", base, alpha=0.0)


@shape("gguf in 16 bits")
def _gguf_half(folder: Path, base: Path) -> Made:
    folder.mkdir()
    return make_gguf(folder / "style.gguf", base, kind="F16")


@shape("names of launchers and compilers")
def _launchers(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base)
    rename_tensors(
        folder,
        lambda k: (
            "module." + k.replace("lora_A.", "lora_A.default.").replace(".self_attn", "._orig_mod.self_attn")
        ),
    )
    return Made(folder, model)


@shape("names without a prefix")
def _bare(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base)
    rename_tensors(folder, lambda k: k.removeprefix(makers.PREFIX))
    return Made(folder, model)


@shape("names of a model with pictures")
def _pictures(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base)
    rename_tensors(folder, lambda k: k.replace("model.layers", "model.language_model.layers"))
    return Made(folder, model, ("rename-layers",))


@shape("copies of the base, head included")
def _copies(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, target_modules=[*ATTENTION, "lm_head"])
    head = makers.load_model(base).lm_head.weight.detach().clone()
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), f"{makers.PREFIX}lm_head.base_layer.weight": head}, file)
    return Made(folder, model)


@shape("an extended vocabulary")
def _extended(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base)
    plain = makers.load_model(base)
    rows = torch.randn(2, 64)
    file = folder / "adapter_model.safetensors"
    grown = {
        f"{makers.PREFIX}{name}.weight": torch.cat([weight.detach(), rows])
        for name, weight in (
            ("model.embed_tokens", plain.model.embed_tokens.weight), ("lm_head", plain.lm_head.weight)
        )
    }  # fmt: skip
    save_file({**load_file(file), **grown}, file)
    return Made(folder, model, ("drop-copies",))


@shape("bfloat16")
def _bfloat16(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base)
    file = folder / "adapter_model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(file).items()}, file)
    return Made(folder, model)


@shape("PiSSA")
def _pissa(folder: Path, base: Path) -> Made:
    return make_start(folder, base, "pissa")


@shape("OLoRA")
def _olora(folder: Path, base: Path) -> Made:
    return make_start(folder, base, "olora")


@shape("PiSSA with rsLoRA")
def _pissa_stabilized(folder: Path, base: Path) -> Made:
    return make_start(folder, base, "pissa", use_rslora=True, rank_pattern={"v_proj": 6})


@shape("CorDA, with its start")
def _corda(folder: Path, base: Path) -> Made:
    model = makers.load_model(base)
    generator = torch.Generator().manual_seed(4)
    for name, layer in model.named_modules():
        if name.endswith(("q_proj", "v_proj")):  # where `preprocess_corda` of peft puts its factors
            x = torch.randn(200, layer.in_features, generator=generator)
            covariance = x.t() @ x / len(x)
            u, s, vh = torch.linalg.svd(layer.weight.detach() @ covariance, full_matrices=False)
            v = torch.linalg.solve(covariance, vh.t())
            layer.eigens = SimpleNamespace(U_WC=u[:, :4], S_WC=s[:4], V_WC=v[:, :4])
    model = make_peft(
        folder, base, model=model, start="corda_init", target_modules=ATTENTION, init_lora_weights="corda"
    )
    return Made(folder, model, ("subtract-start",))


@shape("PiSSA of random projections, with its start")
def _pissa_niter(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, start="pissa_init", init_lora_weights="pissa_niter_4")
    return Made(folder, model, ("subtract-start",))


@shape("DoRA")
def _dora(folder: Path, base: Path) -> Made:
    return Made(folder, make_peft(folder, base, use_dora=True))


@shape("DoRA with rsLoRA and patterns")
def _dora_stabilized(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, use_dora=True, use_rslora=True, rank_pattern={"v_proj": 6})
    return Made(folder, model)


@shape("DoRA, converted")
def _dora_converted(folder: Path, base: Path) -> Made:
    return Made(folder, make_peft(folder, base, use_dora=True), ("convert-dora",))


@shape("DoRA on GPT-2", "gpt2")
def _gpt2_dora(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, use_dora=True, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    return Made(folder, model)


@shape("a trained head and embedding")
def _own_ends(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, modules_to_save=["lm_head", "embed_tokens"])
    return Made(folder, model, ("use-alone",))


@shape("a trained embedding and norms, tied", "tied")
def _own_embedding(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, modules_to_save=["embed_tokens", "norm"])
    return Made(folder, model, ("use-alone",))


@shape("a trained embedding that stays tied", "tied")
def _own_tied(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    return Made(folder, model, ("use-alone",))


@shape("an extended vocabulary, used whole")
def _extended_whole(folder: Path, base: Path) -> Made:
    model = makers.add_tokens(makers.load_model(base), 2, 1.0)
    return Made(folder, make_peft(folder, base, model=model, save_embeddings=True), ("use-alone",))


@shape("trained tokens")
def _tokens(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, trainable_token_indices={"embed_tokens": [40, 3, 101], "lm_head": [9, 3]})
    return Made(folder, model, ("use-alone",))


@shape("trained tokens, tied", "tied")
def _tokens_tied(folder: Path, base: Path) -> Made:
    return Made(folder, make_peft(folder, base, trainable_token_indices=[40, 3, 101]), ("use-alone",))


@shape("chosen layers")
def _chosen(folder: Path, base: Path) -> Made:
    return Made(folder, make_peft(folder, base, layers_to_transform=[1]))


@shape("the head")
def _head(folder: Path, base: Path) -> Made:
    return Made(folder, make_peft(folder, base, target_modules=["lm_head"]))


@shape("GPT-2", "gpt2")
def _gpt2(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    return Made(folder, model)


@shape("PiSSA on GPT-2", "gpt2")
def _gpt2_pissa(folder: Path, base: Path) -> Made:
    return make_start(folder, base, "pissa", target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)


@shape("experts", "experts")
def _experts(folder: Path, base: Path) -> Made:
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return Made(folder, make_peft(folder, base, target_modules=ATTENTION, target_parameters=names))


@shape("experts, grouped by Unsloth", "experts")
def _experts_grouped(folder: Path, base: Path) -> Made:
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    model = make_peft(folder, base, target_modules=ATTENTION, target_parameters=names)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for key, b in tensors.items():
        if "experts" in key and "lora_B" in key:  # column j E + e -> e r + j
            tensors[key] = b.reshape(len(b), -1, 3).transpose(1, 2).reshape(b.shape).contiguous()
    save_file(tensors, file)
    change_config(folder, auto_mapping={"unsloth_fixed": True})
    return Made(folder, model, ("experts-grouped",))


@shape("a zip file with a folder in it")
def _zip(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base)
    (folder / "training_args.bin").write_bytes(b"not read")
    return Made(pack(folder, folder.with_suffix(".zip"), "my-run/final/"), model)


@shape("weights without a configuration")
def _alone(folder: Path, base: Path) -> Made:
    model = make_peft(folder, base, lora_alpha=4)
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_model.safetensors").rename(folder / "my style.safetensors")
    return Made(folder / "my style.safetensors", model, ("alpha-rank",))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "llama": build_tiny_llama(folder / "llama", seed=1),
        "tied": makers.build_tiny_tied(folder / "tied"),
        "gpt2": makers.build_tiny_gpt2(folder / "gpt2"),
        "experts": makers.build_tiny_experts(folder / "experts"),
    }


@pytest.fixture(scope="module")
def engines(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    made: dict[str, Engine] = {}
    for name, base in bases.items():
        made[name] = Engine(tmp_path_factory.mktemp("ws"), str(base), "none", "cpu")
        made[name].bases.current(wait=True)  # transformers cannot load two models at the same time
    yield made
    for engine in made.values():
        engine.close()


def answer(model: Callable[[torch.Tensor], torch.Tensor]) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens, and the logits of all positions."""
    ids = list(PROMPT)
    for _ in range(TOKENS):
        logits = model(torch.tensor([ids]))
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(PROMPT) :], logits


def answer_in_a_mix(engine: Engine, adapter: str) -> tuple[list[int], torch.Tensor]:
    def work() -> tuple[list[int], torch.Tensor]:
        resident, mix = engine.resident_base.get(), Mix(weights={adapter: 1.0})
        resident.load_adapters([mix])
        with inference_mode_for(resident, resident.rows([mix])):
            return answer(lambda ids: resident.model(input_ids=ids).logits)

    return engine.worker.call(work)


def bare_logits(engine: Engine, ids: list[int]) -> torch.Tensor:
    """The base's own logits on the same tokens."""

    def work() -> torch.Tensor:
        resident = engine.resident_base.get()
        with inference_mode_for(resident, resident.rows([Mix()])):
            known = torch.tensor([ids]).clamp(max=383)
            logits: torch.Tensor = resident.model(input_ids=known).logits
            return logits

    return engine.worker.call(work)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_answers_as_its_own_tool(
    name: str, bases: dict[str, Path], engines: dict[str, Engine], tmp_path: Path
) -> None:
    kind, make = SHAPES[name]
    made, engine = make(tmp_path / "made", bases[kind]), engines[kind]
    if made.repairs:  # without its repair it is refused, with the repair's name
        preflight = engine.adapter_imports.examine(str(made.source))
        assert set(made.repairs) <= {r.id for f in preflight.findings for r in f.repairs}
        assert preflight.can_import == (set(made.repairs) <= OPTIONAL)
    adapter = engine.adapter_imports.add(str(made.source), name, made.repairs)
    with torch.no_grad():
        tokens, logits = answer(lambda ids: made.model(input_ids=ids).logits)
    ours, our_logits = answer_in_a_mix(engine, adapter.id)
    engine.library.delete("adapters", adapter.id)
    assert ours == tokens
    assert name != "an extended vocabulary, used whole" or max(tokens) >= 384
    assert (our_logits - logits).abs().max() < (5e-2 if name in LOOSE else 2e-4)
    assert (
        our_logits[..., :384].sub(bare_logits(engine, [*PROMPT, *ours[:-1]])).abs().max() > 0.05
    )  # and not as the base


def test_at_least_thirty_shapes_are_tried() -> None:
    assert len(SHAPES) >= 30
