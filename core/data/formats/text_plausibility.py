"""How much decoded bytes look like a text: its words, scripts, marks and frequent characters.

It orders the encodings that a file may have; the user chooses one (`text_encodings`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_WORD = re.compile(r"[\w\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0e31-\u0e4e]+")
_MARK_RUN = re.compile(r"^[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]"
                       r"|[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]{3}")  # fmt: skip
_FINAL_FORM_INSIDE = re.compile("[ךםןףץ](?=[א-ת])")
_PUNCTUATION = frozenset("“”„‘’‚–—…«»‹›€£¥©®°§·•№\u00a0")
_RARE_LETTERS = frozenset("þðÞÐÝţŢ")  # of Icelandic and older Romanian; in Turkish their bytes are frequent


def rate_text(text: str, encoding: str) -> tuple[float, float]:
    """Rates a decoded text.

    Returns:
        The share of letters among its characters outside ASCII; and from 0 to 1 how plausible it is: how many
        of its words with such characters look like words, and how many are letters or usual punctuation.
    """
    outside = [c for c in text if c > "\x7f"]
    letters = sum(unicodedata.category(c)[0] in "LM" for c in outside)
    usual = letters + sum(c in _PUNCTUATION or "\u3000" <= c <= "\u303f" or "\uff01" <= c <= "\uff65"
                          for c in outside)  # fmt: skip
    words = [w for w in _WORD.findall(text) if not w.isascii()]
    good = sum(_rate_word(w) for w in words) / len(words) if words else 1.0
    good *= _rate_double_bytes(outside, encoding)
    return letters / max(1, len(outside)), (good + usual / max(1, len(outside))) / 2


def _rate_word(word: str) -> float:
    """Rates a word from 0 to 1 by its letters, their case, and where its marks stand."""
    letters = [c for c in word if c.isalpha()]
    if not letters or _MARK_RUN.search(word) or _FINAL_FORM_INSIDE.search(word):
        return 0.0
    plain = "".join(letters)
    has_case = plain.lower() != plain.upper()
    if has_case and not (plain.islower() or plain.isupper() or plain.istitle()):
        return 0.0
    scripts = {find_script(c) for c in letters}
    outside = sum(c > "\x7f" for c in letters)
    if len(scripts) > 1 or (scripts == {"LATIN"} and len(letters) > 2 and outside > 0.6 * len(letters)):
        return 0.0
    return 0.5 if _RARE_LETTERS & set(letters) else 1.0


def find_script(letter: str) -> str:
    """The first word of a letter's Unicode name; the scripts that Japanese mixes count as one."""
    if letter.isascii():
        return "LATIN"
    script = unicodedata.name(letter, "UNKNOWN").split(" ")[0].split("-")[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA", "CJK", "IDEOGRAPHIC", "FULLWIDTH") else script


# First bytes of the frequent characters in the national standards: the first level of GB 2312 and of Big5,
# the Hangul of KS X 1001, and the kana of JIS X 0208.
_FREQUENT = {
    "gb18030": (0xB0, 0xD7),
    "big5hkscs": (0xA4, 0xC6),
    "cp949": (0xB0, 0xC8),
    "euc-jp": (0xA4, 0xA5),
    "cp932": (0x82, 0x83),
}
_FREQUENT_SHARE = {"euc-jp": 0.3, "cp932": 0.3}  # of text; 0.9 in the other encodings


def _rate_double_bytes(characters: Sequence[str], encoding: str) -> float:
    """Rates from 0 to 1 how many letters are frequent ones; 1 for encodings with one byte a character."""
    if encoding not in _FREQUENT:
        return 0.5 if encoding.startswith("utf-") else 1.0
    low, high = _FREQUENT[encoding]
    codes = [c.encode(encoding) for c in characters if c.isalpha()]
    frequent = sum(low <= code[0] <= high and len(code) == 2 for code in codes)
    return min(1.0, frequent / max(1, len(codes)) / _FREQUENT_SHARE.get(encoding, 0.9))
