#!/usr/bin/env bash
# openvino-genai 2026.4.1: an adapter of peft is applied with the factor 1, whatever its lora_alpha is.
#
# Adapter("…/adapter_model.safetensors") reads the two factors of each layer. The scaling, lora_alpha / r, stands in
# adapter_config.json beside them and is not read, and `alpha` of AdapterConfig.add is the whole factor, 1 by
# default. Two adapters with the same tensors, r=4 and lora_alpha 4 and 32, give the same text, which is that of
# peft for lora_alpha 4 only. With alpha = lora_alpha / r both give peft's text. Most adapters in use have
# lora_alpha = 2 r, so that half of their effect is lost without an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.5.4 peft==0.21.2 optimum-intel==2.2.0 \
    openvino==2026.4.1 openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision 2>/dev/null || true # it must fit torch, and is not needed
cd "$folder"
venv/bin/python - <<'PYTHON'
import json

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = "abcdefghijklmnopqrstuvwxyz"
own = Tokenizer(models.BPE({**{c: i for i, c in enumerate(letters)}, "<s>": 26, "</s>": 27, "ab": 28}, [("a", "b")]))
own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>")
tokenizer.save_pretrained("base")
sizes = dict(vocab_size=29, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, bos_token_id=26, eos_token_id=27))
torch.manual_seed(0)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, 0, 0.5)
model.save_pretrained("base")
lora = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
peft = get_peft_model(model, lora)
for name, parameter in peft.named_parameters():
    if "lora_" in name:
        torch.nn.init.normal_(parameter, 0, 0.3)
prompt = tokenizer("abc").input_ids
texts = {}
for alpha in (4, 32):
    for module in peft.modules():
        if isinstance(getattr(module, "scaling", None), dict) and module.scaling:
            module.scaling["default"] = alpha / 4
    peft.peft_config["default"].lora_alpha = alpha
    peft.save_pretrained(f"adapter-{alpha}")
    with torch.inference_mode():
        ids = peft.generate(input_ids=torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=99)
    texts[alpha] = tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
json.dump(texts, open("texts.json", "w"))
PYTHON
venv/bin/optimum-cli export openvino -m base --task text-generation-with-past --weight-format fp32 exported \
    >/dev/null 2>&1
venv/bin/python - <<'PYTHON'
import json

import openvino_genai as genai

config = genai.GenerationConfig(max_new_tokens=12, do_sample=False, ignore_eos=True)
peft = {int(alpha): text for alpha, text in json.load(open("texts.json")).items()}
assert peft[4] != peft[32]


def answer(alpha: int, *factor: float) -> str:
    adapters = genai.AdapterConfig()
    adapters.add(genai.Adapter(f"adapter-{alpha}/adapter_model.safetensors"), *factor)
    return str(genai.LLMPipeline("exported", "CPU", adapters=adapters).generate("abc", config))


found = {alpha: answer(alpha) for alpha in peft}
print(f"peft: {peft}; openvino-genai {genai.__version__}: {found}")
assert found == {4: peft[4], 32: peft[4]}
assert answer(32, 32 / 4) == peft[32]
PYTHON
