"""The language of a text, offline: py3langid, and "" where it is not sure."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

CERTAIN = 0.35  # probability from which a language is reported; of 51 short sentences one is then wrong
SHORTEST = 8  # characters of a text with a language, in a script with spaces; in others the half
READ = 600  # characters that are looked at
NAMES = {
    "af": "Afrikaans", "am": "Amharic", "ar": "Arabic", "arz": "Egyptian Arabic", "az": "Azerbaijani",
    "be": "Belarusian", "bg": "Bulgarian", "bn": "Bengali", "br": "Breton", "bs": "Bosnian", "ca": "Catalan",
    "cs": "Czech", "cy": "Welsh", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "eo": "Esperanto", "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish",
    "fo": "Faroese", "fr": "French", "fy": "Frisian", "ga": "Irish", "gd": "Scottish Gaelic",
    "gl": "Galician", "grc": "Ancient Greek", "gu": "Gujarati", "ha": "Hausa", "he": "Hebrew", "hi": "Hindi",
    "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "ig": "Igbo",
    "is": "Icelandic", "it": "Italian", "ja": "Japanese", "jv": "Javanese", "ka": "Georgian",
    "kk": "Kazakh", "km": "Khmer", "kn": "Kannada", "ko": "Korean", "ku": "Kurdish", "ky": "Kyrgyz",
    "la": "Latin", "lb": "Luxembourgish", "lo": "Lao", "lt": "Lithuanian", "lv": "Latvian",
    "mg": "Malagasy", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian", "mr": "Marathi",
    "ms": "Malay", "mt": "Maltese", "my": "Burmese", "ne": "Nepali", "nl": "Dutch",
    "nn": "Norwegian Nynorsk", "no": "Norwegian", "oc": "Occitan", "or": "Odia", "pa": "Punjabi",
    "pl": "Polish", "ps": "Pashto", "pt": "Portuguese", "qu": "Quechua", "ro": "Romanian", "ru": "Russian",
    "rw": "Kinyarwanda", "sa": "Sanskrit", "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian",
    "so": "Somali", "sq": "Albanian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil",
    "te": "Telugu", "tg": "Tajik", "th": "Thai", "tl": "Tagalog", "tr": "Turkish", "tt": "Tatar",
    "ug": "Uyghur", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vi": "Vietnamese", "wuu": "Wu Chinese",
    "xh": "Xhosa", "yo": "Yoruba", "yue": "Cantonese", "zh": "Chinese", "zu": "Zulu",
}  # fmt: skip


def detect_language(text: str) -> str:
    """The ISO 639 code of the language that a text is written in.

    Returns:
        "" for texts that are too short or that fit several languages, and for code and numbers.

    Example:
        >>> detect_language("The ferry leaves at nine.")
        'en'
    """
    part = text[:READ].strip()
    letters = sum(unicodedata.category(c)[0] in "LM" for c in part)  # with vowel signs of Indic scripts
    if letters < SHORTEST / (1 if part.isascii() else 2) or 2 * letters < len(part):
        return ""
    code, probability = _identifier().classify(part)
    return "" if probability < CERTAIN or code in ("zxx", "und") else str(code)


def name_language(code: str) -> str:
    """The English name of a language; its code where we have no name, and "unknown" for ""."""
    return NAMES.get(code, code) or "unknown"


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # the model takes a second to load

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
