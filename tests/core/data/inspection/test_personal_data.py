"""Personal data: what is found, what is not, and that redacting touches nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.inspection.personal_data import (
    KINDS,
    Hit,
    find_personal_data,
    list_row_texts,
    mask,
    redact_row,
    redact_text,
)

FOUND = [
    ("EMAIL", "jane@example.org"),
    ("EMAIL", "j.doe+news@mail.example.co.uk"),
    ("EMAIL", "üser@exämple.de"),
    ("PHONE", "+44 20 7946 0123"),
    ("PHONE", "+1 (415) 555-2671"),
    ("PHONE", "(415) 555-2671"),
    ("PHONE", "+49 (0)30 901820"),
    ("IBAN", "DE89 3704 0044 0532 0130 00"),
    ("IBAN", "GB82WEST12345698765432"),
    ("CARD", "4111 1111 1111 1111"),
    ("CARD", "5500-0000-0000-0004"),
    ("CARD", "378282246310005"),
    ("KEY", "AKIA" + "IOSFODNN7EXAMPLE"),
    ("KEY", "ghp_" + "a1B2" * 9),
    ("KEY", "hf_" + "Ab1" * 12),
    ("KEY", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"),
    ("KEY", "-----BEGIN PRIVATE KEY-----\n" + "MIIB" * 20 + "\n-----END PRIVATE KEY-----"),
    ("IP", "93.184.216.34"),
    ("IP", "2606:2800:220:1:248:1893:25c8:1946"),
]
ORDINARY = [
    "ISBN 978-3-16-148410-0", "ISBN 0-306-40615-2", "ISBN-13: 9780306406157", "EAN 4006381333931",
    "on 2024-05-17 at 12:30:45", "17.05.2024 14:00", "2019-2020 2021-2022", "in the years 1984 2001 2010",
    "Version 10.12.14.16 fixes it", "v1.2.3", "see section 1.2.3.4", "Chapter 12.34.56.78",
    "release 11.22.33.44", "12,345,678 people", "1 000 000 000", "$1,234,567.89", "3.14159265358979",
    "0.9999628", "+35236450.6", "1234567890",
    "Part number 4711-0815-1234", "Order 20240517-0012345", "Tracking number 1Z999AA10123456784",
    "MAC 00:1A:2B:3C:4D:5E", "192.168.1.10 and 127.0.0.1", "10.0.0.1", "2001:db8::1", "fe80::1",
    "netmask ffff:ffff:ffff:ffff::", "arXiv 2107.02027", "DOI 10.1000/182", "timestamp 1700000000000",
    "https://example.com/item/1234567890", "sha256 d41d8cd98f00b204e9800998ecf8427e", "id=1234567890123",
    "UUID 123e4567-e89b-12d3-a456-426614174000", "pages 1200-1450", "48.8584, 2.2945", "ratio 16:9:4:3",
    "@property", "@jane", "a @ b", "user@localhost", "std::vector<int>::iterator", "a::b::c::d",
    "1 1 2 3 5 8 13 21 34 55", "call it 12 or 13", "call sys.exit(1234567)", "101-99, 88-77, 110-108",
    "(2019) 1234567", "US patent 5,123,456", "License 555-1234", "Zip 12345-6789", "DE123456789",
    "4111 1111 1111 1112", "DE89 3704 0044 0532 0130 01", "serial 0123-4567-8901-2345",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), FOUND)
def test_personal_data_is_found_where_it_stands(kind, text):
    whole = f"Before {text}, after."
    assert find_personal_data(whole) == [Hit(kind, 7, 7 + len(text))]


@pytest.mark.parametrize(
    "text",
    [
        "call 415-555-2671",
        "Tel. 030 901820",
        "Telefon: 089/636-48018",
        "téléphone 01 42 68 53 00",
        "mobile 07400 123456",
        "The phone number is 0401 234 567",
    ],
)
def test_national_numbers_are_found_after_a_word_for_them(text):
    assert [hit.kind for hit in find_personal_data(text)] == ["PHONE"]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_numbers_are_not_personal_data(text):
    assert find_personal_data(text) == []


def test_only_the_user_and_password_of_an_address_are_a_key():
    text = "postgres://user:secretpw@db.example.org/x"
    assert redact_text(text) == ("postgres://[KEY]@db.example.org/x", {"KEY": 1})


def test_masked_examples_show_little():
    shown = [mask(text, Hit(kind, 0, len(text))) for kind, text in FOUND]
    assert shown[0] == "j…@e….org"
    assert shown[3] == "+4…23"
    assert shown[9] == "41…11"
    for (_, text), example in zip(FOUND, shown, strict=True):
        kept = sum(c.isalnum() for c in example.split(" (")[0])
        assert kept <= len(text) / 2


PIECES = st.lists(
    st.one_of(
        st.sampled_from([text for _, text in FOUND]),
        st.sampled_from(ORDINARY),
        st.text(alphabet="ab1 2.3-@:+()[]\n", max_size=12),
    ),
    max_size=8,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(PIECES)
def test_redacting_twice_changes_nothing_more(text):
    clean, counts = redact_text(text)
    assert redact_text(clean) == (clean, {})
    assert find_personal_data(clean) == []
    assert (clean == text) == (not counts)


@settings(max_examples=150, deadline=None)
@given(PIECES)
def test_redacting_touches_nothing_but_hits(text):
    clean, counts = redact_text(text)
    rest, at = clean, 0
    for kind in KINDS:
        rest = rest.replace(f"[{kind}]", "\0")
    for piece in rest.split("\0"):  # what stays stands in the same order
        at = text.index(piece, at) + len(piece)
    assert rest.count("\0") == sum(counts.values())


def test_only_the_chosen_kinds_are_redacted():
    text = "jane@example.org, +44 20 7946 0123"
    assert redact_text(text, ("PHONE",)) == ("jane@example.org, [PHONE]", {"PHONE": 1})


def test_all_texts_of_a_row_are_redacted_and_nothing_else():
    row = {
        "messages": [
            {"role": "user", "content": "Who is jane@example.org?"},
            {"role": "assistant", "content": "Nobody.", "thought": "See +44 20 7946 0123", "weight": 0},
        ],
        "type": "jane@example.org",
    }
    clean, counts = redact_row(row)
    assert clean == {
        "messages": [
            {"role": "user", "content": "Who is [EMAIL]?"},
            {"role": "assistant", "content": "Nobody.", "thought": "See [PHONE]", "weight": 0},
        ],
        "type": "jane@example.org",
    }
    assert counts == {"EMAIL": 1, "PHONE": 1}
    assert row["messages"][0]["content"] == "Who is jane@example.org?"
    assert list_row_texts({"text": "a", "heading": "b", "document": "c", "part": 1}) == ["a", "b", "c"]
