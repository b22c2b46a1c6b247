#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0: two loads that overlap on two threads end weight tying in the process.
#
# from_pretrained replaces PreTrainedModel.tie_weights by an empty function while it builds the model, and puts
# back what it found before. Where a second thread begins inside of the first one's time and ends after it, what
# it finds and puts back is the empty function, and nothing ties weights any more: a model with
# tie_word_embeddings that is loaded later, on one thread, has a head with random numbers of its own, and other
# logits, with no warning but that of a missing key. Load one model at a time (a lock), or in processes.
#
# The models here wait for each other while they are built, so that the order is always the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
FOLDER="$folder/model" "$folder/venv/bin/python" - <<'PYTHON'
import os
import threading

import torch
from transformers import LlamaConfig, LlamaForCausalLM

folder = os.environ["FOLDER"]
torch.manual_seed(0)
sizes = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=32)
LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).save_pretrained(folder)
ids = torch.tensor([[3, 4, 5]])


def is_tied(model):
    return model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


before = LlamaForCausalLM.from_pretrained(folder)
first_began, second_began, first_ended = (threading.Event() for _ in range(3))


class Waiting(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        if threading.current_thread().name == "first":
            first_began.set()
            second_began.wait(60)
        else:
            second_began.set()
            first_ended.wait(60)


def load():
    Waiting.from_pretrained(folder)
    first_ended.set()


threads = [threading.Thread(target=load, name=name) for name in ("first", "second")]
threads[0].start()
first_began.wait(60)
threads[1].start()
for thread in threads:
    thread.join()
after = LlamaForCausalLM.from_pretrained(folder)
with torch.no_grad():
    difference = float((before(ids).logits - after(ids).logits).abs().max())
print(f"tied before: {is_tied(before)}, after two loads that overlapped: {is_tied(after)}; logits differ by {difference:.3f}")
assert is_tied(before) and not is_tied(after) and difference > 1e-3
PYTHON
