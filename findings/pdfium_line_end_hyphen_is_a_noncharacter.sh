#!/usr/bin/env bash
# pypdfium2 5.15.2 (pdfium 159.0.8149.0), with PDF files written by reportlab 5.1.0.
#
# A word that is hyphenated at the end of a line ("un-" / "usually") comes out of pdfium as one run of characters
# without the line end, and its hyphen is replaced by a code that is not a hyphen: get_text_range() returns the
# noncharacter U+FFFE in its place, get_text_bounded() of the same page returns U+0002, and FPDFText_GetUnicode
# returns 0x2. So the two text methods disagree on the same characters, text for training holds a noncharacter
# inside a word, and a search for the word finds nothing in either spelling. A hyphen between digits ("1990-" /
# "1995") keeps its code and its line end.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "pypdfium2==5.15.2" "reportlab==5.1.0"
"$folder/venv/bin/python" - <<'PYTHON'
import io

import pypdfium2 as pdfium
from pypdfium2 import raw
from reportlab.pdfgen import canvas


def read(*lines):
    file = io.BytesIO()
    page = canvas.Canvas(file)
    for number, line in enumerate(lines):
        page.drawString(72, 700 - 14 * number, line)
    page.save()
    return pdfium.PdfDocument(file.getvalue())[0].get_textpage()


word = read("The weather is un-", "usually calm.")
seen = {
    "get_text_range": word.get_text_range(),
    "get_text_bounded": word.get_text_bounded(),
    "code": hex(raw.FPDFText_GetUnicode(word, 17)),
    "found unusually": word.search("unusually").get_next() is not None,
    "found un-usually": word.search("un-usually").get_next() is not None,
    "digits": read("from 1990-", "1995").get_text_range(),
}
for name, value in seen.items():
    print(f"{name}: {value!r}")
assert seen == {
    "get_text_range": "The weather is un\ufffeusually calm.",
    "get_text_bounded": "The weather is un\x02usually calm.",
    "code": "0x2",
    "found unusually": False,
    "found un-usually": False,
    "digits": "from 1990-\r\n1995",
}, "the behaviour has changed"
print("pdfium still replaces the hyphen at a line end by U+FFFE or U+0002.")
PYTHON
