#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0 and torch 2.13.0: the rotary scaling of a GGUF file is dropped in silence.
#
# A GGUF file states its scaling under <architecture>.rope.scaling.*; here YaRN with a factor of 4 over an
# original context of 1,024 tokens. gguf's own reader shows the three keys. The config that transformers builds
# from the file (AutoConfig or from_pretrained with gguf_file=...) has the default rotary embedding and the long
# context, without a warning: a model with a stretched context then computes other positions than in llama.cpp.
# Read the keys from the file, and write them into the config before the model is built.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 gguf==0.19.0 torch==2.13.0
FOLDER="$folder/file" "$folder/venv/bin/python" - <<'PYTHON'
import os

import gguf
import numpy as np
from transformers import AutoConfig

folder = os.environ["FOLDER"]
os.makedirs(folder)
path = os.path.join(folder, "tiny.gguf")
file = gguf.GGUFWriter(path, "llama")
file.add_context_length(4096)
file.add_embedding_length(64)
file.add_block_count(1)
file.add_feed_forward_length(128)
file.add_head_count(4)
file.add_head_count_kv(2)
file.add_layer_norm_rms_eps(1e-5)
file.add_vocab_size(32)
file.add_rope_freq_base(10000.0)
file.add_rope_scaling_type(gguf.RopeScalingType.YARN)
file.add_rope_scaling_factor(4.0)
file.add_rope_scaling_orig_ctx_len(1024)
file.add_tensor("token_embd.weight", np.zeros((32, 64), np.float32))
file.add_tensor("output_norm.weight", np.ones(64, np.float32))
file.write_header_to_file()
file.write_kv_data_to_file()
file.write_tensors_to_file()
file.close()
stated = {k: v.contents() for k, v in gguf.GGUFReader(path).fields.items() if "rope.scaling" in k}
config = AutoConfig.from_pretrained(folder, gguf_file="tiny.gguf")
print(f"the file: {stated}")
print(f"the config: {config.rope_parameters}, context {config.max_position_embeddings}")
assert stated["llama.rope.scaling.type"] == "yarn" and stated["llama.rope.scaling.factor"] == 4.0
assert config.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}
assert config.max_position_embeddings == 4096
PYTHON
