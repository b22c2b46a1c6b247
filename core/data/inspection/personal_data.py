"""Personal data in texts: what it is recognized by, masked examples, and placeholders in its place.

    "Write to jane@example.org or +44 20 7946 0123."
              └─── EMAIL ────┘    └─── PHONE ────┘
    "Write to [EMAIL] or [PHONE]."

Only what has a form of its own is found: addresses, numbers with a checksum or of a numbering plan, and keys
of services with a known prefix. Names and postal addresses are not.
"""

from __future__ import annotations

import bisect
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LABELS = {
    "EMAIL": "E-mail addresses",
    "PHONE": "Phone numbers",
    "IBAN": "Bank accounts (IBAN)",
    "CARD": "Payment cards",
    "KEY": "Keys and tokens",
    "IP": "IP addresses",
}
KINDS = tuple(LABELS)
REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "IN", "AU", "BR", "JP")  # of numbers without "+"
TEXT_KEYS = ("text", "heading", "document")  # of a canonical row
MESSAGE_KEYS = ("content", "thought")


@dataclass(frozen=True)
class Hit:
    """Personal data in a text: its kind, and its first and last offset."""

    kind: str
    start: int
    end: int


_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w][\w.+%'-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w@-])"
)
_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY-----.{16,8192}?-----END (?:[A-Z]+ ){0,3}PRIVATE KEY-----"
    r"|(?<![\w-])(?:"
    r"(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|gh[pousr]_[0-9A-Za-z]{36,255}|github_pat_[0-9A-Za-z_]{60,255}"
    r"|glpat-[\w-]{20,64}"
    r"|xox[abeoprs]-[0-9A-Za-z-]{16,250}"
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,500}"
    r"|sk-(?:ant-|proj-|or-|svcacct-)[\w-]{20,250}|sk-[0-9A-Za-z]{32,64}"
    r"|hf_[0-9A-Za-z]{30,64}"
    r"|[rs]k_(?:live|test)_[0-9A-Za-z]{16,250}|whsec_[0-9A-Za-z]{24,64}"
    r"|SG\.[\w-]{22}\.[\w-]{43}"
    r"|npm_[0-9A-Za-z]{36}|pypi-[\w-]{50,300}|dop_v1_[0-9a-f]{64}"
    r"|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{16,1000}"
    r")(?![\w-])"
    r"|(?<=://)[^\s/:@]{1,64}:[^\s/:@]{3,128}(?=@[\w.-])",
    re.DOTALL,
)
_IBAN = re.compile(r"(?<![\w])[A-Z]{2}[0-9]{2}(?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,4})?(?![\w])")
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20,
    "LB": 28, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19,
    "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29,
    "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TN": 24, "TR": 26,
    "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip
_CARD = re.compile(r"(?<![\w.,/-])[0-9](?:[ -]?[0-9]){12,18}(?![\w/-]|[.,][0-9])")
_CARD_PREFIX = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}|"
    r"(?:6011|64[4-9]\d|65\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}"
)
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w.]*[0-9])(?!\.[\w])(?!\w)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_VERSION = re.compile(r"(?:\bv|version|release|build|section|chapter|firmware|\bsw|\bno|§)[.:]?\s*$", re.I)
# Where a phone number may stand; the numbering plans decide.
_PHONE = re.compile(
    r"(?<![\w@/.,:=#$€£-])(?:\+|00|\()?[0-9](?:[ ().\-\u00a0\u2010-\u2013/]{0,3}[0-9]){6,17}(?![\w@%$€£])"
)
_NATIONAL = re.compile(
    r"\((?!(?:19|20)[0-9]{2}\))0?[0-9]{2,5}\)[ -]?[0-9]{3,4}[ -]?[0-9]{3,5}"
    r"|[2-9][0-9]{2}([-.])[0-9]{3}\1[0-9]{4}"
)
_DECIMAL = re.compile(r"[+]?[0-9]+[.][0-9]+")
_PHONE_CUE = re.compile(
    r"(?:\b(?:tel|phone|telephone|mobile|cell|fax|call|dial|whatsapp|sms|text|telefon|mobil|handy|"
    r"anrufen|rufnummer|t[ée]l|t[ée]l[ée]phone|portable|tel[ée]fono|m[óo]vil|celular|telefone|telefono|"
    r"cellulare|telefoon)\w{0,6}\b|\u260e|\u260f|\u2706|\U0001f4de|\U0001f4f1)\W{0,12}(?:\w{1,7}\W{1,4}){0,3}$",
    re.I,
)


def find_personal_data(text: str) -> list[Hit]:
    """Finds personal data in a text.

    Returns:
        Hits that do not overlap, in their order. Where two would overlap, the kind that is listed first in
        `_FINDERS` counts.
    """
    hits: list[Hit] = []
    for kind, find in _FINDERS:
        starts = [hit.start for hit in hits]
        for start, end in find(text):
            at = bisect.bisect_right(starts, start)
            is_free = (not at or hits[at - 1].end <= start) and (at == len(starts) or end <= starts[at])
            if is_free:
                hits.append(Hit(kind, start, end))  # hits of one kind do not overlap
        hits.sort(key=lambda hit: hit.start)
    return hits


def _find_emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text:
        yield from (m.span() for m in _EMAIL.finditer(text))


def _find_keys(text: str) -> Iterator[tuple[int, int]]:
    yield from (m.span() for m in _KEY.finditer(text))


def _find_ibans(text: str) -> Iterator[tuple[int, int]]:
    for m in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(m.group()[:2], 0)
        end = m.start()
        for c in m.group():  # the match may go on into the next word
            length -= c != " "
            end += 1
            if not length:
                break
        following = text[end : end + 1]
        if not length and not following.isalnum() and _has_iban_checksum(text[m.start() : end]):
            yield m.start(), end


def _has_iban_checksum(written: str) -> bool:
    """ISO 13616: the number with its first four characters at the end is 1 modulo 97."""
    account = written.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in account[4:] + account[:4])) % 97 == 1


def _find_cards(text: str) -> Iterator[tuple[int, int]]:
    for m in _CARD.finditer(text):
        digits = re.sub(r"\D", "", m.group())
        if _CARD_PREFIX.fullmatch(digits) and _has_luhn_checksum(digits):
            yield m.span()


def _has_luhn_checksum(digits: str) -> bool:
    """ISO/IEC 7812: every second digit from the right doubled, the sum of all digits is 0 modulo 10."""
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0 and len(set(digits)) > 1


def _find_addresses(text: str) -> Iterator[tuple[int, int]]:
    """IP addresses of the public internet; version and section numbers are not addresses."""
    for m in _IPV4.finditer(text):
        parts = m.group().split(".")
        is_number = sum(len(part) > 1 for part in parts) < 2 or _VERSION.search(
            text[max(0, m.start() - 20) : m.start()]
        )
        if not is_number and _is_public(m.group()):
            yield m.span()
    if text.count(":") > 2:
        for m in _IPV6.finditer(text):
            is_mask = m.group().lower().startswith("ffff")
            if m.group().count(":") > 3 and not is_mask and _is_public(m.group()):
                yield m.span()


def _is_public(written: str) -> bool:
    try:
        return ipaddress.ip_address(written).is_global
    except ValueError:
        return False


def _find_phones(text: str) -> Iterator[tuple[int, int]]:
    """Numbers that the numbering plans allow: with "+", or after a word such as "tel" or "call"."""
    for m in _PHONE.finditer(text):
        number = m.group()
        start, end = m.span()
        if _DECIMAL.fullmatch(number):
            continue
        if number.startswith("+"):
            if _is_valid_number(number, None):
                yield start, end
        elif _PHONE_CUE.search(text[max(0, start - 60) : start]) or _looks_national(number):
            if any(_is_valid_number(number, region) for region in REGIONS):
                yield start, end


def _looks_national(number: str) -> bool:
    """Whether a number is grouped as a phone number is and as no date, ISBN or amount is."""
    return _NATIONAL.fullmatch(number) is not None


def _is_valid_number(number: str, region: str | None) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False


_FINDERS: tuple[tuple[str, Callable[[str], Iterator[tuple[int, int]]]], ...] = (
    ("KEY", _find_keys),
    ("EMAIL", _find_emails),
    ("IBAN", _find_ibans),
    ("CARD", _find_cards),
    ("IP", _find_addresses),
    ("PHONE", _find_phones),
)


def mask(text: str, hit: Hit) -> str:
    """What the page shows of personal data: its first and last characters, and never more than a third."""
    found = text[hit.start : hit.end]
    if hit.kind == "EMAIL":
        name, _, domain = found.rpartition("@")
        return f"{name[0]}…@{domain[0]}….{domain.rpartition('.')[2]}"
    if hit.kind == "KEY":
        return f"{found[:4]}… ({len(found)} characters)"
    compact = "".join(found.split())
    shown = max(1, len(compact) // 6)
    return f"{compact[:shown]}…{compact[-shown:]}"


def placeholder(kind: str) -> str:
    """What stands in the place of personal data of a kind."""
    return f"[{kind}]"


def redact_text(text: str, kinds: tuple[str, ...] = KINDS) -> tuple[str, dict[str, int]]:
    """Puts placeholders in the place of personal data; a second time changes nothing.

    Args:
        kinds: which kinds; the others stay.

    Returns:
        The text; how many hits of each kind were replaced.
    """
    counts: dict[str, int] = {}
    while hits := [hit for hit in find_personal_data(text) if hit.kind in kinds]:
        pieces, at = [], 0
        for hit in hits:
            pieces += [text[at : hit.start], placeholder(hit.kind)]
            counts[hit.kind] = counts.get(hit.kind, 0) + 1
            at = hit.end
        text = "".join([*pieces, text[at:]])  # a number beside a hit may only now stand alone
    return text, counts


def list_row_texts(row: Mapping[str, Any]) -> list[str]:
    """The texts of a canonical row in which personal data is looked for."""
    texts = [row[key] for key in TEXT_KEYS if isinstance(row.get(key), str)]
    return texts + [m[key] for m in row.get("messages", ()) for key in MESSAGE_KEYS if key in m]


def redact_row(
    row: Mapping[str, Any], kinds: tuple[str, ...] = KINDS
) -> tuple[dict[str, Any], dict[str, int]]:
    """Redacts the texts of a canonical row; see `redact_text`."""
    counts: dict[str, int] = {}

    def redact(text: str) -> str:
        clean, found = redact_text(text, kinds)
        for kind, n in found.items():
            counts[kind] = counts.get(kind, 0) + n
        return clean

    changed = dict(row)
    for key in TEXT_KEYS:
        if isinstance(row.get(key), str):
            changed[key] = redact(row[key])
    if "messages" in row:
        changed["messages"] = [
            {key: redact(value) if key in MESSAGE_KEYS else value for key, value in message.items()}
            for message in row["messages"]
        ]
    return changed, counts
