#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0: T5Config takes tie_word_embeddings=False only as "do not scale".
#
# T5 of version 1.1 and FLAN-T5 have a head of their own: tie_word_embeddings is false in their config.json. In
# 5.23.0 T5Config(tie_word_embeddings=False) answers True for that setting, keeps the False as
# scale_decoder_outputs, and a new model shares one weight between embedding and head. The saved config says
# tie_word_embeddings true. A reader that knows this flag alone, as the config of any earlier version states it,
# also scales the decoder's outputs by d_model ** -0.5: the same weights then give other logits (shown here by a
# config that is built from the flag alone). A program that unties T5 cannot express it by the flag.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import json

import torch
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
shape = dict(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
config = T5Config(**shape, tie_word_embeddings=False)
saved = json.loads(config.to_json_string(use_diff=False))
model = T5ForConditionalGeneration(config).eval()
again = T5ForConditionalGeneration(T5Config(**{**shape, "tie_word_embeddings": saved["tie_word_embeddings"]}))
again.load_state_dict(model.state_dict())
ids, start = torch.tensor([[5, 6, 1]]), torch.tensor([[0, 3]])
with torch.inference_mode():
    first, second = (m.eval()(input_ids=ids, decoder_input_ids=start).logits for m in (model, again))
ratio = float((second / first).median())
print("asked for False, the config says", config.tie_word_embeddings, "and scales:", config.scale_decoder_outputs)
print("the head is the embedding:", model.lm_head.weight is model.shared.weight)
print(f"logits of the same weights under the saved flag, as a share of the first: {ratio:.6f} = 32 ** -0.5")
assert config.tie_word_embeddings is True and config.scale_decoder_outputs is False
assert model.lm_head.weight is model.shared.weight
assert abs(ratio - 32**-0.5) < 1e-5
PYTHON
