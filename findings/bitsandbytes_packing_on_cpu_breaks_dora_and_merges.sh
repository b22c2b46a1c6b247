#!/usr/bin/env bash
# bitsandbytes 0.50.2 with peft 0.21.2 and torch 2.13.0, on a CPU with AVX512-BF16 (elsewhere the script ends early):
# a DoRA adapter on a 4-bit layer answers wrongly, and a LoRA merged after one answer spoils the layer.
#
# At its first forward without gradients in eval mode, a Linear4bit on such a CPU reorders its weight in place for a
# bf16 kernel. peft then still reads the weight through the ordinary dequantization, in two places: DoRA at every
# forward, for the norm of each output, and merge. Neither undoes the reordering, and nothing raises or warns. Seen
# here: without the reordering DoRA gives the outputs of the dequantized weight; with it they are off by 13 %. A
# merge before the first answer stays within the error of quantizing again; the same merge after one answer gives a
# layer whose outputs have little to do with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet bitsandbytes==0.50.2 peft==0.21.2 torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

warnings.simplefilter("ignore")
import bitsandbytes as bnb
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from peft import LoraConfig, get_peft_model

if not has_avx512bf16():
    print("not run: this CPU has no AVX512-BF16, so bitsandbytes does not reorder weights here")
    raise SystemExit


def make(dora: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32))
    model[0].weight = bnb.nn.Params4bit(torch.randn(64, 64) * 0.1, requires_grad=False, quant_type="nf4")
    model = model.to("cpu")
    model.is_loaded_in_4bit = True  # as transformers says of a model that it loads so; peft then uses its 4-bit layers
    settings = LoraConfig(r=4, target_modules=["0"], use_dora=dora, init_lora_weights=False)
    return get_peft_model(model, settings).eval()


x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    model = make(dora=True)
    layer = model.base_model.model[0]
    weight = dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state).float()
    change = layer.get_delta_weight("default").float()
    magnitude = layer.lora_magnitude_vector["default"].weight.float()
    norm = (weight + change).norm(dim=1)
    expected = x @ ((magnitude / norm)[:, None] * (weight + change)).T
    errors = []
    for reorders in (False, True):
        layer.base_layer.support_avx512bf16_for_cpu = reorders
        errors.append(float((model(x) - expected).norm() / expected.norm()))

    results = {}
    for name in ("before", "after"):
        model = make(dora=False)
        layer = model.base_model.model[0]
        weight = dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state).float()
        expected = x @ (weight + layer.get_delta_weight("default").float()).T
        if name == "after":
            model(x)
        merged = model.merge_and_unload()
        results[name] = float((merged(x) - expected).norm() / expected.norm())
print(f"DoRA: relative error without the reordering {errors[0]:.3f}, with it {errors[1]:.3f}")
print(f"merged before the first answer: relative error {results['before']:.2f}; after one answer: {results['after']:.2f}")
assert errors[0] < 0.02 < 0.1 < errors[1]
assert results["before"] < 0.3 < 0.9 < results["after"]
PYTHON
