"""Characters of symbol fonts in .docx files (w:sym) as Unicode."""

from __future__ import annotations

_PRIVATE = range(0xF000, 0xF100)  # where symbol fonts store their 256 characters

# The font "Symbol" at 0x61 to 0x7A and 0x41 to 0x5A: Greek in the order of the Latin letters.
_GREEK_LOWER = "αβχδεφγηιϕκλμνοπθρστυϖωξψζ"
_GREEK_UPPER = "ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ"
_SYMBOL = {
    **{0x61 + i: c for i, c in enumerate(_GREEK_LOWER)},
    **{0x41 + i: c for i, c in enumerate(_GREEK_UPPER)},
    0x22: "∀", 0x24: "∃", 0x27: "∋", 0x2A: "∗", 0x2D: "−", 0x40: "≅", 0x5C: "∴", 0x5E: "⊥", 0x7E: "∼",
    0xA2: "′", 0xA3: "≤", 0xA4: "⁄", 0xA5: "∞", 0xA6: "ƒ", 0xAB: "↔", 0xAC: "←", 0xAD: "↑", 0xAE: "→",
    0xAF: "↓", 0xB0: "°", 0xB1: "±", 0xB2: "″", 0xB3: "≥", 0xB4: "×", 0xB5: "∝", 0xB6: "∂", 0xB7: "•",
    0xB8: "÷", 0xB9: "≠", 0xBA: "≡", 0xBB: "≈", 0xBC: "…", 0xC0: "ℵ", 0xC4: "⊗", 0xC5: "⊕", 0xC6: "∅",
    0xC7: "∩", 0xC8: "∪", 0xC9: "⊃", 0xCA: "⊇", 0xCB: "⊄", 0xCC: "⊂", 0xCD: "⊆", 0xCE: "∈", 0xCF: "∉",
    0xD0: "∠", 0xD1: "∇", 0xD2: "®", 0xD3: "©", 0xD4: "™", 0xD5: "∏", 0xD6: "√", 0xD7: "⋅", 0xD8: "¬",
    0xD9: "∧", 0xDA: "∨", 0xDB: "⇔", 0xDC: "⇐", 0xDD: "⇑", 0xDE: "⇒", 0xDF: "⇓", 0xE5: "∑", 0xF2: "∫",
}  # fmt: skip
_WINGDINGS = {
    0x4A: "☺", 0x4C: "☹", 0x6C: "●", 0x6E: "■", 0x6F: "□", 0x71: "❑", 0x76: "❖", 0x9F: "•", 0xA7: "▪",
    0xA8: "☐", 0xD8: "➢", 0xDF: "←", 0xE0: "→", 0xE1: "↑", 0xE2: "↓", 0xE8: "➔", 0xF0: "⇨", 0xFB: "✗",
    0xFC: "✓", 0xFD: "☒", 0xFE: "☑",
}  # fmt: skip
_WINGDINGS_2 = {0x50: "✓", 0x4F: "✗", 0x52: "☑", 0x54: "☒", 0xA3: "☐"}
_FONTS = {"symbol": _SYMBOL, "wingdings": _WINGDINGS, "wingdings 2": _WINGDINGS_2}


def read_symbol(code: str, font: str) -> str | None:
    """The character of a w:sym element.

    Args:
        code: its w:char, in hexadecimal.
        font: its w:font.

    Returns:
        None for a character of a picture font that has none in Unicode, or that is not in the tables.
    """
    try:
        value = int(code, 16)
    except ValueError:
        return None
    table = _FONTS.get(font.strip().lower())
    if value in _PRIVATE:
        value -= _PRIVATE.start
        if table is None:
            return None
    if table is None:
        return chr(value) if 0x20 <= value < 0x110000 and not 0xD800 <= value < 0xE000 else None
    if font.strip().lower() == "symbol" and 0x20 <= value < 0x7F:
        return table.get(value, chr(value))
    return table.get(value)
