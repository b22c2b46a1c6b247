#!/usr/bin/env bash
# lm-eval 0.4.13 with transformers 5.23.0, peft 0.21.0 and torch 2.13.0: an adapter's figures on a padded vocabulary.
#
# Many bases have more rows of embeddings than their tokenizer has tokens, so that a matrix has a round size. The
# harness's `hf` model, given the adapter's folder as peft=, first resizes the embeddings to the length of the
# tokenizer. That takes the padding out of every softmax, and each log-likelihood changes: the same adapter on the same
# base, loaded with peft before it is given to the harness, has other figures. Without peft= nothing is resized, so
# base and adapter of one table are not measured in the same way.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.0 lm-eval==0.4.13 accelerate
FOLDER="$folder/files" "$folder/venv/bin/python" - <<'PYTHON'
import os
import pathlib

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder = pathlib.Path(os.environ["FOLDER"])
base, adapter = folder / "base", folder / "adapter"
words = ["<unk>", "<s>", "</s>", "the", "lamp", "is", "in", "north", "south", "room"]
own = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
own.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
tokenizer.save_pretrained(base)
torch.manual_seed(0)
sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2)).save_pretrained(base)
config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(adapter)


def measure(model):
    request = Instance("loglikelihood", {}, ("the lamp is in the", " north room"), 0)
    return model.loglikelihood([request], disable_tqdm=True)[0][0]


by_folder = HFLM(pretrained=str(base), peft=str(adapter), device="cpu", dtype="float32")
loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), str(adapter)).eval()
by_model = HFLM(pretrained=loaded, tokenizer=tokenizer)
rows = by_folder.model.get_input_embeddings().weight.shape[0]
with_peft, without = measure(by_folder), measure(by_model)
print(f"base: 64 rows of embeddings, {len(tokenizer)} tokens; with peft= the harness has {rows} rows")
print(f"log-likelihood of the same words with the same adapter: {with_peft:.3f} with peft=, {without:.3f} as a model")
assert rows == len(tokenizer) == 10 and with_peft - without > 1
PYTHON
