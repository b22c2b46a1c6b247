"""Quantities in a text: numbers with their signs and units, compared by value.

    "1,000 g", "1.000 g", "1 000 g", "1'000 g" and "1 kg" are one quantity
    1.5 is not 15, -5 is not 5, 5 kg is not 5 g, 5 mW is not 5 MW, and "12:30", "1.2.3" and "5th" are words

A group of three digits after one comma or point may be thousands or decimals ("1,125"), so such a number has
two readings. Two quantities are equal where a reading of one equals a reading of the other. Where only one of
them has a unit, the numbers are compared: a question may have named the unit. "two" to "twelve" are numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, localcontext

from core.evaluate.words import fold_characters

DIGITS_LIMIT = 40  # of a number; a longer row of digits is a word
# Unit -> (what it is converted to, factor). Symbols are compared with their case, words without it.
_SCALES: dict[str, dict[str, str]] = {
    "g": {"µg": "1e-6", "mcg": "1e-6", "mg": "1e-3", "g": "1", "kg": "1e3", "t": "1e6"},
    "m": {"nm": "1e-9", "µm": "1e-6", "mm": "1e-3", "cm": "1e-2", "dm": "1e-1", "m": "1", "km": "1e3"},
    "s": {"ns": "1e-9", "µs": "1e-6", "ms": "1e-3", "s": "1", "min": "60", "h": "3600", "d": "86400"},
    "l": {"µl": "1e-6", "ml": "1e-3", "mL": "1e-3", "cl": "1e-2", "dl": "1e-1", "l": "1", "L": "1"},
    "W": {"mW": "1e-3", "W": "1", "kW": "1e3", "MW": "1e6", "GW": "1e9"},
    "V": {"mV": "1e-3", "V": "1", "kV": "1e3"},
    "A": {"mA": "1e-3", "A": "1"},
    "Hz": {"Hz": "1", "kHz": "1e3", "MHz": "1e6", "GHz": "1e9"},
    "Pa": {"Pa": "1", "hPa": "1e2", "kPa": "1e3", "MPa": "1e6", "bar": "1e5", "mbar": "1e2"},
    "B": {"B": "1", "kB": "1e3", "KB": "1e3", "MB": "1e6", "GB": "1e9", "TB": "1e12"},
    "%": {"%": "1"},
    "°C": {"°C": "1"},
    "°F": {"°F": "1"},
    "K": {"K": "1"},
    "$": {"$": "1", "USD": "1"},
    "€": {"€": "1", "EUR": "1"},
    "£": {"£": "1", "GBP": "1"},
    "¥": {"¥": "1", "JPY": "1"},
}
_NAMES = {
    "gram": "g", "grams": "g", "kilogram": "kg", "kilograms": "kg", "milligram": "mg", "milligrams": "mg",
    "tonne": "t", "tonnes": "t", "metre": "m", "metres": "m", "meter": "m", "meters": "m",
    "kilometre": "km", "kilometres": "km", "kilometer": "km", "kilometers": "km", "centimetre": "cm",
    "centimetres": "cm", "centimeter": "cm", "centimeters": "cm", "millimetre": "mm", "millimetres": "mm",
    "millimeter": "mm", "millimeters": "mm", "second": "s", "seconds": "s", "sec": "s", "minute": "min",
    "minutes": "min", "hour": "h", "hours": "h", "hrs": "h", "day": "d", "days": "d", "litre": "l",
    "litres": "l", "liter": "l", "liters": "l", "millilitre": "ml", "millilitres": "ml",
    "milliliter": "ml", "milliliters": "ml", "watt": "W", "watts": "W", "volt": "V", "volts": "V",
    "percent": "%", "dollar": "$", "dollars": "$", "euro": "€", "euros": "€",
}  # fmt: skip
_UNITS = {unit: (kind, Decimal(factor)) for kind, scale in _SCALES.items() for unit, factor in scale.items()}
_SYMBOLS = "|".join(re.escape(u) for u in sorted(_UNITS, key=len, reverse=True))
_WORDS = "|".join(sorted(_NAMES, key=len, reverse=True))
_NUMBER = re.compile(
    rf"""
    (?<![\w.,:/'^])(?<![^\W\d_]-)
    (?P<sign>(?:(?<=[\s(\[{{="“<>~≈*])|(?<![\s\S]))[+-])?
    (?P<currency>[$€£¥]\s?)?
    (?P<inner>(?<=[$€£¥])[+-])?
    (?P<number>
        \d{{1,3}}(?:\ \d{{3}})+(?:[.,]\d+)?(?!\d)               # 1 000,5
        |\d{{1,3}}(?:'\d{{3}})+(?:[.,]\d+)?                      # 1'000.5
        |\d{{1,3}}(?:,\d{{2,3}})*,\d{{3}}(?:\.\d+)?              # 1,000.5 and 12,34,567
        |\d{{1,3}}(?:\.\d{{3}})+(?:,\d+)?                        # 1.000,5
        |\d+(?:[.,]\d+)?
        |\.\d+
    )
    (?P<exponent>[eE][+-]?\d{{1,3}}|\s?[×·*x]\s?10\^[+-]?\d{{1,3}})?
    (?:\s?(?P<unit>(?:{_SYMBOLS})|(?i:{_WORDS}))(?![\w]))?
    (?!\w|[.,:/']\d|\^)
    """,
    re.VERBOSE,
)
_COUNTS = {
    name: str(number)
    for number, name in enumerate(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"), 2
    )
}
_COUNT = re.compile(rf"(?i)\b(?:{'|'.join(_COUNTS)})\b(?![- ](?:hundred|thousand|million|billion)\b)(?!-)")
_GROUPED = re.compile(r"[1-9]\d{0,2}[.,]\d{3}")


@dataclass(frozen=True)
class Quantity:
    """A number with its unit.

    Attributes:
        values: its possible readings, as written.
        unit: as written, such as "kg"; "" without one.
    """

    values: frozenset[Decimal]
    unit: str = ""

    def matches(self, other: Quantity) -> bool:
        """Whether two quantities are the same in some reading."""
        if not (self.unit and other.unit):
            return bool(self.values & other.values)
        (kind, factor), (other_kind, other_factor) = _UNITS[self.unit], _UNITS[other.unit]
        if kind != other_kind:
            return False
        with localcontext() as context:
            context.prec = 2 * DIGITS_LIMIT
            return bool({v * factor for v in self.values} & {v * other_factor for v in other.values})

    def __str__(self) -> str:
        number = "/".join(sorted(format(value, "f") for value in self.values))
        return f"{number} {self.unit}".strip()


def split_quantities(text: str) -> tuple[list[Quantity], str]:
    """Takes the quantities out of a text.

    Returns:
        (the quantities in order, the text with a blank line in place of each)

    Example:
        >>> quantities, rest = split_quantities("The tank holds 1,500 l.")
        >>> str(quantities[0]), rest.split()
        ('1.500/1500 l', ['The', 'tank', 'holds', '.'])
    """
    folded = re.sub(r"(?:(?<=\s)|(?<![\s\S]))[\u2012\u2013](?=\.?\d)", "-", fold_characters(text))
    folded = _COUNT.sub(lambda match: _COUNTS[match[0].lower()], folded)
    found: list[Quantity] = []

    def take(match: re.Match[str]) -> str:
        if (quantity := _read(match)) is None:
            return match[0]
        found.append(quantity)
        return " \n "

    return found, _NUMBER.sub(take, folded)


def _read(match: re.Match[str]) -> Quantity | None:
    """The quantity of a match; None for a row of digits that is too long for a number."""
    number, exponent = match["number"], match["exponent"] or ""
    if sum(c.isdigit() for c in number) > DIGITS_LIMIT:
        return None
    power = int(re.sub(r".*(?:[eE]|\^)", "", exponent) or 0)
    sign = "-" if "-" in (match["sign"] or "", match["inner"] or "") else ""
    values = frozenset(Decimal(f"{sign}{reading}e{power}") for reading in _list_readings(number))
    unit = (match["currency"] or "").strip() or match["unit"] or ""
    return Quantity(values, unit if unit in _UNITS else _NAMES.get(unit.lower(), ""))


def _list_readings(number: str) -> list[str]:
    """The readings of a number, as decimals with a point."""
    plain = number.replace(" ", "").replace("'", "")
    if plain != number:  # a mark that only separates thousands
        return [plain.replace(",", ".")]
    if _GROUPED.fullmatch(number):
        return [number.replace(",", "").replace(".", ""), number.replace(",", ".")]
    commas, points = number.count(","), number.count(".")
    if commas and points:
        thousands = "," if number.rindex(".") > number.rindex(",") else "."
        return [number.replace(thousands, "").replace(",", ".")]
    if commas + points > 1:
        return [number.replace(",", "").replace(".", "")]
    return [number.replace(",", ".")]
