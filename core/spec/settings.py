"""Settings as frozen dataclasses: one sentence, a default and limits per field, and a JSON round trip."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import field
from typing import Any, TypeVar

from core.errors import SpecError

SEED = 20251101
LIST_LIMIT = 512  # entries of a list of texts
Spec = TypeVar("Spec", bound="Limited")


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    label: str = "",
) -> Any:
    """A dataclass field with its sentence and its limits (inclusive)."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "label": label}
    if isinstance(default, (list, tuple, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Settings:
    """Checks every field's type and limits when built, and goes through JSON and back."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]
        return value

    @classmethod
    def from_json(cls: type[Spec], value: dict[str, Any]) -> Spec:
        """Builds from a dict of fields.

        Raises:
            SpecError: an unknown field, a wrong type, or a value outside its limits.
        """
        if not isinstance(value, dict):
            raise SpecError(f"The settings are {value!r}.", "Give them by name.")
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(value) - known):
            raise SpecError(
                f"Unknown settings: {', '.join(unknown)}.", f"Known are: {', '.join(sorted(known))}."
            )
        return cls(**value)


def label_of(f: dataclasses.Field[Any]) -> str:
    """The label that people see for a field."""
    return f.metadata.get("label") or f.name.replace("_", " ").capitalize()


def _checked(f: dataclasses.Field[Any], value: Any) -> Any:
    kind, meta = str(f.type), f.metadata
    label = label_of(f)
    if kind in ("int", "float"):
        if not is_number(value):
            raise SpecError(f"{label} is {value!r}, not a number.", _allowed(meta))
        if kind == "int" and value != int(value):
            raise SpecError(f"{label} is {value!r}, not a whole number.", _allowed(meta))
        value = int(value) if kind == "int" else float(value)
        if (meta.get("low") is not None and value < meta["low"]) or (
            meta.get("high") is not None and value > meta["high"]
        ):
            raise SpecError(f"{label} is {value:g}.", _allowed(meta))
    elif kind == "bool":
        if not isinstance(value, bool):
            raise SpecError(f"{label} is {value!r}.", "It is true or false.")
    elif kind == "str":
        if not isinstance(value, str) or len(value) > (meta.get("high") or 4000):
            raise SpecError(
                f"{label} is not a text of at most {int(meta.get('high') or 4000)} characters.",
                "Give a shorter text.",
            )
        if meta.get("choices") and value not in meta["choices"]:
            raise SpecError(f"{label} is {value!r}.", f"Choose one of: {', '.join(meta['choices'])}.")
    elif kind.startswith("tuple"):
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise SpecError(f"{label} is {value!r}.", "Give a list of texts.")
        if len(value) > LIST_LIMIT or any(len(v) > 4000 for v in value):
            raise SpecError(
                f"{label} has {len(value)} entries.",
                f"Give at most {LIST_LIMIT}, of at most 4000 characters each.",
            )
        value = tuple(value)
    return value


def is_number(value: Any) -> bool:
    """A finite int or float; an int so large that no float holds it is none either."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def format_number(number: float) -> str:
    """A limit as people write it: whole numbers in full."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def _allowed(meta: Any) -> str:
    low, high = meta.get("low"), meta.get("high")
    return (
        f"Allowed are {format_number(low)} to {format_number(high)}."
        if low is not None and high is not None
        else "Give a number."
    )
