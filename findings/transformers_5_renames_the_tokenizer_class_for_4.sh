#!/usr/bin/env bash
# transformers 5.23.0 and 4.57.6: a tokenizer that 5 has loaded and saved cannot be loaded by 4 any more.
#
# tokenizer_config.json of a Llama 3 or SmolLM folder names the class PreTrainedTokenizerFast. AutoTokenizer of
# 4.57.6 writes and reads it. AutoTokenizer of 5.23.0 reads it too, but save_pretrained, which trainers call for
# every adapter and checkpoint, then writes "TokenizersBackend" (with "is_local", an argument of the loading),
# and 4.57.6 raises ValueError: that class does not exist. tokenizer.json has not changed, and PreTrainedTokenizerFast
# of 4.57.6 reads the folder. Whoever serves with transformers 4 has to put the old name back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 4.57.6 5.23.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet "transformers==$version"
done
cd "$folder"
4.57.6/bin/python - <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

own = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "<s>": 3}, [("a", "b")]))
own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>").save_pretrained("first")
assert AutoTokenizer.from_pretrained("first")("abb").input_ids == [2, 1]
PYTHON
5.23.0/bin/python - <<'PYTHON'
import json

from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("first")
assert tokenizer("abb").input_ids == [2, 1]
tokenizer.save_pretrained("second")
before, after = (json.load(open(f"{name}/tokenizer_config.json")) for name in ("first", "second"))
print(f"transformers 4.57.6 wrote {before['tokenizer_class']}, 5.23.0 writes {after['tokenizer_class']}")
assert before["tokenizer_class"] == "PreTrainedTokenizerFast" and after["tokenizer_class"] == "TokenizersBackend"
assert after["is_local"] is True
PYTHON
4.57.6/bin/python - <<'PYTHON'
from transformers import AutoTokenizer, PreTrainedTokenizerFast

try:
    AutoTokenizer.from_pretrained("second")
except ValueError as e:
    print(f"transformers 4.57.6: ValueError: {e}")
else:
    raise SystemExit("transformers 4.57.6 loads it")
assert PreTrainedTokenizerFast.from_pretrained("second")("abb").input_ids == [2, 1]
PYTHON
