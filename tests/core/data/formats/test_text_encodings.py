"""Encodings: what identifies itself is read and said; of others the right one is offered first."""

import io

import pytest

from core.data.formats.read_log import ReadLog
from core.data.formats.readers import read_files
from core.data.formats.text_encodings import (
    ENCODINGS,
    LABELS,
    choose_codec,
    identify,
    list_candidates,
    normalize_encoding,
)
from core.errors import DataError, UnknownEncoding

TEXTS = {
    "de": "Die Fähre fährt täglich um 06:10 Uhr über den See. Hunde kosten nichts, Räder müssen zahlen.",
    "fr": "Le premier départ est à 06h10. Les chiens voyagent gratuitement, les vélos coûtent deux euros.",
    "ru": "Первый паром отправляется в 06:10. Собаки едут бесплатно, велосипеды платно.",
    "pl": "Pierwszy prom odpływa o 6:10. Psy podróżują za darmo, rowery są płatne. Żółta łódź, źródło.",
    "cs": "První trajekt odjíždí v 6:10. Psi cestují zdarma, kola se platí. Příliš žluťoučký kůň.",
    "tr": "İlk vapur 06:10'da kalkar. Köpekler ücretsiz, bisikletler ücretlidir. Şu anda güneşli.",
    "el": "Το πρώτο πλοίο αναχωρεί στις 06:10. Τα σκυλιά ταξιδεύουν δωρεάν.",
    "ja": "最初のフェリーは6時10分に出発します。犬は無料です。自転車は有料です。",
    "zh": "第一班渡轮在6点10分出发。狗免费，自行车收费。请在开船前十分钟到达码头。",
    "zh-tw": "第一班渡輪在六點十分出發。狗免費，腳踏車收費。請在開船前十分鐘到達碼頭。",
    "ko": "첫 배는 오전 6시 10분에 출발합니다. 개는 무료이고 자전거는 유료입니다.",
    "he": "המעבורת הראשונה יוצאת בשעה 6:10. כלבים נוסעים בחינם.",
    "ar": "تغادر العبارة الأولى في الساعة 6:10. تسافر الكلاب مجانا.",
}
AMBIGUOUS = [
    ("de", "cp1252"), ("de", "latin-1"), ("de", "mac-roman"), ("de", "cp850"), ("fr", "cp1252"),
    ("fr", "mac-roman"), ("ru", "cp1251"), ("ru", "koi8-r"), ("ru", "cp866"), ("ru", "iso-8859-5"),
    ("pl", "cp1250"), ("pl", "iso-8859-2"), ("cs", "cp1250"), ("cs", "iso-8859-2"), ("tr", "cp1254"),
    ("el", "cp1253"), ("ja", "cp932"), ("ja", "euc-jp"), ("zh", "gb18030"), ("zh-tw", "big5hkscs"),
    ("ko", "cp949"), ("he", "cp1255"), ("ar", "cp1256"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "encoding"), AMBIGUOUS)
def test_the_right_encoding_is_among_the_first_two_offered(language, encoding):
    text = TEXTS[language]
    candidates = list_candidates(io.BytesIO(f"plain\n{text}\nmore\n".encode(encoding)))
    places = [i for i, c in enumerate(candidates) if encoding in (c.encoding, *c.same)]
    assert places and places[0] <= 1, [c.encoding for c in candidates]
    assert candidates[places[0]].preview[0].rstrip("…") in text
    assert len({c.preview for c in candidates}) == len(candidates) > 1


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("length", [5, 40, 5000])
def test_utf16_and_utf32_identify_themselves_with_or_without_a_mark(language, codec, length):
    text = (TEXTS[language] * 100)[:length] + "\nok\n"
    found, how = identify(text.encode(codec)[: 1 << 16])
    assert found == codec and how
    assert text.encode(codec).decode(found) == text


def test_ascii_and_utf8_do_not_identify_themselves_but_a_mark_does():
    assert identify(b"plain") == identify("é".encode()) == ("", "")
    assert identify("\ufeffé".encode()) == ("utf-8-sig", "its byte order mark")
    assert identify("犬は無料".encode("iso-2022-jp")) == ("iso-2022-jp", "its escape sequences")
    assert identify(b"a\0b\x01\0c") == identify(b"\x00\x01\x02\x03") == ("", "")


def test_a_file_of_nuls_is_refused_and_never_read_as_utf16(tmp_path):
    for data in (b"one\0two\0three\0\0", b"first line\n" + b"y" * 101 + b"\0", b"ab" * 50 + b"\0c\0d"):
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(DataError, match="NUL character"):
            read_files([tmp_path / "a.txt"])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-32-be"])
def test_every_text_format_is_read_in_the_encoding_that_it_shows(tmp_path, name, codec):
    text = {"a.txt": "Fähre", "a.jsonl": '{"text": "Fähre"}\n', "a.json": '[{"text": "Fähre"}]',
            "a.csv": "text\nFähre\n"}[name]  # fmt: skip
    (tmp_path / name).write_bytes(text.encode(codec))
    log = ReadLog()
    assert read_files([tmp_path / name], log=log)[0].values == {"text": "Fähre"}
    assert len(log.notes) == 1 and log.notes[0].startswith(f"{name} is read as UTF-")


def test_the_error_carries_the_candidates_and_names_the_flag(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXTS["ru"].encode("koi8-r"))
    with pytest.raises(UnknownEncoding) as caught:
        read_files([tmp_path / "a.txt"])
    assert caught.value.candidates[0].encoding == "koi8-r" and caught.value.line == 1
    assert "--encoding" in caught.value.fix and "Первый паром" in caught.value.fix
    assert read_files([tmp_path / "a.txt"], "koi8-r")[0].values["text"] == TEXTS["ru"]


def test_a_chosen_encoding_does_not_spoil_the_files_that_are_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXTS["de"].encode("cp1252"))
    (tmp_path / "b.txt").write_bytes(TEXTS["ru"].encode())
    log = ReadLog()
    rows = read_files([tmp_path / "a.txt", tmp_path / "b.txt"], "windows-1252", log)
    assert [r.values["text"] for r in rows] == [TEXTS["de"], TEXTS["ru"]]
    assert log.notes == ["b.txt is read as UTF-8, because of its bytes, which are valid UTF-8 throughout."]


def test_a_damaged_line_of_a_utf8_file_is_not_a_question_of_its_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes("Fähre\n".encode() * 9 + b"F\xe4hre\n")
    with pytest.raises(DataError, match="not valid utf-8, although the rest of the file is") as caught:
        read_files([tmp_path / "a.txt"])
    assert caught.value.line == 10 and not isinstance(caught.value, UnknownEncoding)


def test_names_and_labels_cover_every_encoding():
    assert len(set(LABELS.values())) == len(ENCODINGS)
    for encoding in ENCODINGS:
        assert normalize_encoding(encoding) == encoding
        assert choose_codec(io.BytesIO(b"plain"), encoding) == (encoding, "")
    assert normalize_encoding(" Shift_JIS ") == "cp932" and normalize_encoding("GBK") == "gb18030"


def test_candidates_are_found_far_into_a_large_file():
    data = b"plain line\n" * 200_000 + "Fähre\n".encode("cp1252")
    assert list_candidates(io.BytesIO(data))[0].preview == ("Fähre",)
