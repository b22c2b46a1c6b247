#!/usr/bin/env bash
# transformers 5.23.0 with tokenizers 0.23.3: special tokens that were added later.
#
# add_tokens(..., special_tokens=True) makes a token that decode(skip_special_tokens=True) drops and that
# added_tokens_decoder marks as special. But all_special_tokens and all_special_ids do not list it, before and
# after a round trip through save_pretrained. Code that looks for control tokens in all_special_tokens (to
# recognise forged ones in a user's text, or to compare two tokenizers) misses such a token; only
# added_tokens_decoder knows it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3
FOLDER="$folder/saved" "$folder/venv/bin/python" - <<'PYTHON'
import os

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
tokenizer.add_tokens(["<turn>"], special_tokens=True)
tokenizer.save_pretrained(os.environ["FOLDER"])
loaded = PreTrainedTokenizerFast.from_pretrained(os.environ["FOLDER"])
for name, t in (("added", tokenizer), ("loaded again", loaded)):
    number = t.convert_tokens_to_ids("<turn>")
    marked = t.added_tokens_decoder[number].special
    text = t.decode([0, number, 1], skip_special_tokens=True)
    print(f"{name}: special={marked}, listed={t.all_special_tokens}, decoded without special tokens: {text!r}")
    assert marked and "<turn>" not in t.all_special_tokens and number not in t.all_special_ids
    assert "<turn>" not in text, text
PYTHON
