"""The base class of settings: frozen dataclasses whose fields have a help sentence, a default and limits.

The terminal, the API and the forms of the page show these sentences and limits.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any, TypeVar

from core.errors import SpecError

SEED = 20251101
TEXT_LIMIT = 4000  # characters of a string without a limit of its own, and of each string in a list
LIST_LIMIT = 512  # entries of a list
S = TypeVar("S", bound="Settings")


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    label: str = "",
) -> Any:
    """A dataclass field of `Settings`.

    Args:
        default: lists and dicts are copied for every instance.
        help: one sentence for the user.
        low, high: limits of a number, both inclusive; `high` is also the maximum length of a string.
        choices: the allowed values of a string.
        label: what the user sees; by default the name of the field.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "label": label}
    if isinstance(default, (list, tuple, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Settings:
    """Base class: checks the type and limits of every field, and converts to and from JSON.

    Raises:
        SpecError: a value has the wrong type or is outside its limits.

    Example:
        >>> @dataclass(frozen=True)
        ... class Sampling(Settings):
        ...     top_k: int = setting(0, "Number of tokens to sample from.", low=0, high=100)
    """

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, f.name, check_field(f, getattr(self, f.name)))

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]
        return value

    @classmethod
    def from_json(cls: type[S], value: dict[str, Any]) -> S:
        """Creates settings from a dict of fields; missing fields get their defaults.

        Raises:
            SpecError: an unknown field, a wrong type, or a value outside its limits.
        """
        if not isinstance(value, dict):
            raise SpecError(f"Settings must map names to values, got {value!r}.", "Give a value per name.")
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(value) - known):
            raise SpecError(
                f"Unknown settings: {', '.join(unknown)}.", f"The settings are: {', '.join(sorted(known))}."
            )
        return cls(**value)


def label_of(f: dataclasses.Field[Any]) -> str:
    """The label of a field, as the user sees it."""
    return f.metadata.get("label") or f.name.replace("_", " ").capitalize()


def is_number(value: Any) -> bool:
    """Whether a value is a finite int or float; an int that no float can hold is not."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def format_number(number: float) -> str:
    """A number as people write it: 300, 0.05 or 1e-7; with all digits where fewer would be another number."""
    if number == int(number):
        return str(int(number))
    text = f"{number:g}" if float(f"{number:g}") == number else repr(number)
    return re.sub(r"e([+-])0+", r"e\1", text)


def check_field(f: dataclasses.Field[Any], value: Any) -> Any:
    """The value in the type of its field.

    Raises:
        SpecError: a wrong type, or outside the limits; it names the field.
    """
    try:
        return _convert_field(f, value)
    except SpecError as e:
        e.at(f.name)
        raise


def _convert_field(f: dataclasses.Field[Any], value: Any) -> Any:
    """The value in the type of its field. Raises SpecError."""
    kind, label = str(f.type), label_of(f)
    if value is None and kind.endswith("| None"):
        return None
    if kind in ("int", "float"):
        return _check_number(kind, label, f.metadata, value)
    if kind == "bool":
        if not isinstance(value, bool):
            raise SpecError(f"{label} must be true or false, got {value!r}.", "Use true or false.")
    elif kind == "str":
        _check_text(label, f.metadata, value)
    elif kind.startswith("tuple"):
        return _check_list(label, value)
    return value


def _check_number(kind: str, label: str, metadata: Mapping[str, Any], value: Any) -> float:
    low, high = metadata.get("low"), metadata.get("high")
    limits = _format_limits(low, high)
    if not is_number(value):
        raise SpecError(f"{label} must be a number{limits}, got {value!r}.", "Enter a number.")
    if kind == "int" and value != int(value):
        raise SpecError(f"{label} must be a whole number{limits}, got {value!r}.", "Enter a whole number.")
    if (low is not None and value < low) or (high is not None and value > high):
        raise SpecError(
            f"{label} must be{limits.replace(' of ', ' ')}, got {format_number(value)}.",
            "Enter a value in this range.",
        )
    return int(value) if kind == "int" else float(value)


def _format_limits(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" between {format_number(low)} and {format_number(high)}"
    if low is not None:
        return f" of at least {format_number(low)}"
    return "" if high is None else f" of at most {format_number(high)}"


def _check_text(label: str, metadata: Mapping[str, Any], value: Any) -> None:
    limit, choices = int(metadata.get("high") or TEXT_LIMIT), metadata.get("choices")
    if not isinstance(value, str):
        raise SpecError(f"{label} must be a string, got {value!r}.", "Enter a string.")
    if len(value) > limit:
        raise SpecError(f"{label} must have at most {limit} characters, got {len(value)}.", "Shorten it.")
    if choices and value not in choices:
        names = [c or '""' for c in choices]
        raise SpecError(f"{label} must be one of {', '.join(names)}, got {value!r}.", "Choose one of them.")


def _check_list(label: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise SpecError(f"{label} must be a list of strings, got {value!r}.", "Enter a list of strings.")
    if len(value) > LIST_LIMIT or any(len(v) > TEXT_LIMIT for v in value):
        longest = max(map(len, value))
        raise SpecError(
            f"{label} must have at most {LIST_LIMIT} entries of at most {TEXT_LIMIT} characters, "
            f"got {len(value)} entries of up to {longest} characters.",
            "Remove or shorten entries.",
        )
    return tuple(value)
