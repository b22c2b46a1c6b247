"""Splits an answer into the words that exact match and F1 compare.

    text     “The C++ book costs -$1,000.50 in 東京.”
    words    c++  book  costs  $  -1000.50  in  東  京

- Unicode: NFKC, then case folding; decimal digits of all scripts are equal. `3½` is `3 1/2`, `10²` is `10^2`.
- Punctuation (categories P*, quotes, dashes) is dropped. Inside a word, an apostrophe, a point or a hyphen
  between two letters joins them (don't, U.S., cold-rack); all other punctuation separates words.
- A number keeps its sign, its exponent (1e-5) and the points, colons and slashes inside it. Commas and
  apostrophes of thousands are dropped (1,000 is 1000); one other comma is a decimal comma and stays; several
  separate a list.
- Symbols (categories S*) and % are words of their own: $5 is $ 5, and neither is 5. A `+`, `#` or `-` that
  ends a word (C++, C#, A-, O+) and the point of .NET belong to the word.
- An English article before another word is dropped; "vitamin A" and the answer "A" keep theirs.
- Scripts that are written without blanks (Chinese, Japanese, Thai, Lao, Khmer, Burmese) have one word per
  character, with the marks on it.
- A text of punctuation alone is compared as it is. So only a blank text has no words.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

ARTICLES = frozenset({"a", "an", "the"})
# Code points of the scripts that are written without blanks between words.
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x19E0, 0x19FF),
    (0x3005, 0x3007),  # 々 〆 〇
    (0x3041, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # CJK ideographs
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)
# Characters that mean the same as an ASCII one and that NFKC leaves alone, or turns into a blank.
_SAME = str.maketrans(
    {
        **dict.fromkeys("‘’‛‚ʼʹ´`＇′", "'"),
        **dict.fromkeys("‐‑−﹣－⁃", "-"),
        "⁄": "/",
        "∕": "/",
        "٫": ".",
        "٬": ",",
        "٪": "%",
    }
)
_VARIATION_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_EN_DASH_SIGN = re.compile(r"[\u2012\u2013](?=\.?\d)")
_EXPONENT = re.compile(r"(?<=\d)e[+-](?=\d)")  # 1e-5, 1e+5
_OWN_CLASS = frozenset(".,:/'-+#%_")
# Over a string of one class per character: L letter, N digit, M mark, U letter of an unspaced script, C
# currency, E operator, S other symbol, O punctuation before signs, P other punctuation, B blank; the
# characters of _OWN_CLASS stand for themselves.
_WORD = re.compile(
    r"""
    (?P<sign>                                                    # -5, -$5, x=-5, -x; not 10-20, 5%-10%, x-ray
        (?<![LNMP+\-])(?<!N[SCU%])[-+](?=C?\.?N|L(?![LNM]))
    )?
    (?:(?P<currency>C)(?P<inner>(?<!NC)[-+](?=\.?N))?)?          # $5, $-5
    (?P<word>
        (?:(?<![LNMU.])\.(?=N)|(?<![^BO])\.(?=L))?               # .5, .NET
        [LN](?:
            [LNM]
            |(?<=N)[.,:/'](?=N)                                  # 1.5, 1,000, 12:30, 1/2
            |(?<=[LM])['.](?=L)                                  # don't, U.S.
            |(?<=[LM][LM])-(?=L)|(?<=[LM])-(?=LL)                # cold-rack, x-ray; not x-y
            |(?<=[LNM])_(?=[LN])                                 # snake_case
        )*
        (?:[+#]+(?![+#LNU])|(?<=[LM])-(?=[BOP.,:/']|$))?           # C++, C#, A-
    )
    |UM*
    |[SCE+%]M*
    |M+
    """,
    re.VERBOSE,
)
_THOUSANDS = re.compile(r"(?<![\d.,'])\d{1,3}(?:,\d{3})+(?![\d,])|(?<![\d.,'])\d{1,3}(?:'\d{3})+(?![\d'])")


def split_words(text: str) -> list[str]:
    """Splits an answer into normalised words, in order.

    Returns:
        The words; [] for blank text only.

    Example:
        >>> split_words("The C# book: 1,000 pages!")
        ['c#', 'book', '1000', 'pages']
    """
    folded = _EXPONENT.sub(lambda m: m[0].rstrip("+"), _fold(text))
    classes = "".join(map(_classify, folded))
    for m in _EXPONENT.finditer(folded):  # the sign of an exponent is a letter of its number
        classes = f"{classes[: m.end() - 1]}L{classes[m.end() :]}"
    found = [(m, _read_words(m, folded)) for m in _WORD.finditer(classes)]
    words = []
    for i, (match, read) in enumerate(found):
        is_article = len(read) == 1 and read[0] in ARTICLES
        # An article stands directly before the blank in front of another word: not "vitamin A", not "A. Red".
        if is_article and i + 1 < len(found) and classes[match.end()] == "B":
            continue
        words += read
    return words or folded.split() or text.split()


def _fold(text: str) -> str:
    """Applies NFKC, case folding and the tables above; leaves out invisible characters."""
    if text.isascii():
        return text.casefold().replace("`", "'")
    folded = unicodedata.normalize("NFKC", "".join(_separate(text)).translate(_SAME)).casefold()
    folded = unicodedata.normalize("NFKC", folded).translate(_SAME)
    folded = _EN_DASH_SIGN.sub("-", folded)
    visible = [c for c in _VARIATION_SELECTORS.sub("", folded) if unicodedata.category(c) != "Cf"]
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in visible)


def fold_characters(text: str) -> str:
    """Applies NFKC and the tables of equal characters, with the case of the text; digits become ASCII.

    A fraction or an exponent stays apart from the number before it.
    """
    if text.isascii():
        return text
    folded = unicodedata.normalize("NFKC", "".join(_separate(text)).translate(_SAME)).translate(_SAME)
    folded = "".join(c for c in folded if unicodedata.category(c) != "Cf")
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in folded).replace("μ", "µ")


def _separate(text: str) -> list[str]:
    """The characters, with a mark where NFKC would join a fraction or an exponent to the number before it."""
    parts: list[str] = []
    follows_number = is_raised = False
    for c in text:
        kind = unicodedata.decomposition(c).partition(" ")[0]
        raised = kind in ("<super>", "<sub>") and unicodedata.category(c) in ("No", "Sm")
        if follows_number and kind == "<fraction>":
            parts.append(" ")
        elif follows_number and raised and not is_raised:
            parts.append("^" if kind == "<super>" else "_")
        parts.append(c)
        is_raised = raised
        follows_number = c.isdecimal() or (follows_number and raised)
    return parts


@lru_cache(maxsize=4096)
def _classify(c: str) -> str:
    category = unicodedata.category(c)
    if c in _OWN_CLASS:
        return c
    if c.isspace() or category[0] == "Z" or category == "Cc":
        return "B"
    if "0" <= c <= "9" or c == "∞":
        return "N"
    if category[0] == "M":
        return "M"
    if c in "‰‱":
        return "S"
    if category[0] == "P":
        return "P" if category in ("Pd", "Pe") or c in "!?" else "O"
    if category[0] == "S":
        return {"Sc": "C", "So": "S"}.get(category, "E")
    code = ord(c)
    return "U" if any(low <= code <= high for low, high in UNSPACED) else "L"


def _read_words(match: re.Match[str], folded: str) -> list[str]:
    """The words of one match: usually one; a currency before a number, and a list of numbers, are several."""

    def part(name: str) -> str:
        start, end = match.span(name)
        return folded[start:end] if start >= 0 else ""

    word = part("word")
    if not word:
        return [folded[match.start() : match.end()]]
    if word.lstrip(".")[0].isdigit():
        word = _THOUSANDS.sub(lambda m: m[0].replace(",", "").replace("'", ""), word).replace("'", " ")
        words = (word.replace(",", " ") if word.count(",") > 1 else word).split()
    else:
        words = [_join_letters(word)]
    words[0] = (part("sign") or part("inner")) + words[0]
    return [part("currency"), *words] if part("currency") else words


def _join_letters(word: str) -> str:
    """A word without the apostrophes, points and hyphens between its letters.

    A hyphen at its end is a sign after one or two letters (A-, AB-), otherwise the mark of a division.
    """
    if word.endswith("-"):
        word = word if len(word) <= 3 else word[:-1]
    return re.sub(r"(?<=[^\W\d_])['.\-](?=[^\W\d_])", "", word)
