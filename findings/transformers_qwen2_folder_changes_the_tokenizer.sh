#!/usr/bin/env bash
# transformers 5.23.0 with tokenizers 0.23.3: a config.json beside a tokenizer changes its ids.
#
# A folder holds a tokenizer.json without a normalizer, and a tokenizer_config.json that names the plain class.
# AutoTokenizer reads it as written. With a config.json of model_type "qwen2" in the same folder, AutoTokenizer
# builds a Qwen2Tokenizer instead, whatever both files say, and that composes accents (NFC) first: a decomposed
# e with an acute accent has three ids without the config and two with it. Both files are as before. Ids of such
# a folder (a model converted from GGUF, or trained with a tokenizer of its own) differ between AutoTokenizer,
# the tokenizers library and llama.cpp.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3
FOLDER="$folder/saved" "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
import pathlib

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config

folder = pathlib.Path(os.environ["FOLDER"])
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
own = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
PreTrainedTokenizerFast(tokenizer_object=own).save_pretrained(folder)
text = "e\u0301"
expected = own.encode(text).ids
alone = AutoTokenizer.from_pretrained(folder)
print(f"without config.json: {type(alone).__name__} {alone(text).input_ids}")
assert alone(text).input_ids == expected and len(expected) == 3
Qwen2Config().save_pretrained(folder)
beside = AutoTokenizer.from_pretrained(folder)
print(f"with config.json:    {type(beside).__name__} {beside(text).input_ids}")
assert type(beside).__name__ == "Qwen2Tokenizer" and len(beside(text).input_ids) == 2
assert json.loads((folder / "tokenizer.json").read_text())["normalizer"] is None
assert own.encode(text).ids == expected
PYTHON
