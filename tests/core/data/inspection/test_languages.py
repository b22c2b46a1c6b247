"""Languages of short texts, and "" where nothing is certain."""

import pytest

from core.data.inspection.languages import detect_language, name_language

SENTENCES = {
    "en": "Where is the red lamp?",
    "de": "Die Fähre fährt um neun Uhr ab und kehrt am Abend zurück.",
    "fr": "Où est la lampe rouge ?",
    "es": "¿Dónde está la lámpara roja?",
    "it": "Il traghetto parte alle nove e torna la sera.",
    "pt": "Onde está a lâmpada vermelha?",
    "nl": "Waar is de rode lamp?",
    "pl": "Gdzie jest czerwona lampa?",
    "tr": "Kırmızı lamba nerede?",
    "ru": "Где находится красная лампа?",
    "zh": "红色的灯在哪里？",
    "ja": "赤いランプはどこですか。",
    "ko": "빨간 램프는 어디에 있나요?",
    "ar": "أين المصباح الأحمر؟",
    "hi": "लाल दीपक कहाँ है?",
    "th": "โคมไฟสีแดงอยู่ที่ไหน",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_short_sentences_have_their_language(code):
    assert detect_language(SENTENCES[code]) == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "A7-113",
        "ok",
        "Blue",
        "def f(x): return x+1",
        '{"a": 1, "b": [2, 3]}',
        "2024-05-17 12:30:45",
    ],
)
def test_numbers_code_and_single_words_have_none(text):
    assert detect_language(text) == ""


def test_names_are_english():
    assert [name_language(code) for code in ("de", "zh", "", "ltg")] == [
        "German",
        "Chinese",
        "unknown",
        "ltg",
    ]
