#!/usr/bin/env bash
# tokenizers 0.23.3, decoder ByteFallback (sentencepiece models: Llama 2, Mistral, Gemma).
#
# An answer that is streamed token by token often ends in the middle of a character. The byte-level decoder then
# keeps the characters before it and writes one U+FFFD for the unfinished rest. ByteFallback decides for a whole
# run of neighbouring byte tokens at once: while the last character is unfinished, it writes U+FFFD for every byte
# of the run, also for the complete characters before it. A reader who drops the trailing U+FFFD from a streamed
# text therefore sees finished characters vanish and come back with each new byte.
#
# Seen: 'E4 BD A0' gives one character; 'E4 BD A0 E4' gives four U+FFFD, not one character and one U+FFFD.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
from tokenizers import decoders

fallback = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
whole = fallback.decode(["<0xE4>", "<0xBD>", "<0xA0>"])
cut = fallback.decode(["<0xE4>", "<0xBD>", "<0xA0>", "<0xE4>"])
separate = fallback.decode(["<0xE4>", "<0xBD>", "<0xA0>", "a", "<0xE4>"])
byte_level = decoders.ByteLevel().decode(["\u00e4", "\u00bd", "\u0142", "\u00e4"])  # the same four bytes
print(f"ByteFallback, one character:            {whole!r}")
print(f"ByteFallback, and a byte of the next:   {cut!r}")
print(f"ByteFallback, with a letter in between: {separate!r}")
print(f"ByteLevel, the same four bytes:         {byte_level!r}")
assert whole == "\u4f60", whole
assert cut == "\ufffd" * 4, cut
assert separate == "\u4f60a\ufffd", separate
assert byte_level == "\u4f60\ufffd", byte_level
PYTHON
