#!/usr/bin/env bash
# transformers 5.23.0 and 4.57.1: a config that version 5 saves has another rotary base in version 4, silently.
#
# 5.23.0 writes the base of the rotary embedding into rope_parameters only. 4.57.1 keeps that entry as an unknown
# attribute and takes rope_theta from its own default, 10000. Nothing is printed. A model whose base is 1000000
# (or 500000) is then loaded with its own weights and other rotary frequencies. A folder for both versions needs
# both spellings.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 5.23.0 4.57.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet "transformers==$version"
done
cd "$folder"
5.23.0/bin/python - <<'PYTHON'
from transformers import LlamaConfig, MistralConfig, Qwen2Config

for kind in (LlamaConfig, MistralConfig, Qwen2Config):
    config = kind(rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0})
    config.save_pretrained(kind.model_type)
    again = kind.from_pretrained(kind.model_type)
    print("5.23.0", kind.model_type, "rope_parameters", again.rope_parameters)
    assert again.rope_parameters["rope_theta"] == 1_000_000.0
PYTHON
4.57.1/bin/python - <<'PYTHON'
import json

from transformers import AutoConfig

for kind in ("llama", "mistral", "qwen2"):
    saved = json.load(open(f"{kind}/config.json"))
    config = AutoConfig.from_pretrained(kind)
    print("4.57.1", kind, "rope_theta", config.rope_theta, "saved", saved["rope_parameters"])
    assert "rope_theta" not in saved and saved["rope_parameters"]["rope_theta"] == 1_000_000.0
    assert config.rope_theta == 10_000.0
PYTHON
