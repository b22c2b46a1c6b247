"""Checks values from JSON against type annotations: of dataclasses, TypedDicts and the types in them.

A record may come from another version or from a damaged disk. A key that is missing gets its default, and an
unknown key is left to other versions; a value of another type is refused, because it would fail later, on a
page. Only the types of JSON are compared: true is not a number, and text is not a list.

pydantic is not used: it refuses the `TypedDict` of `typing` before Python 3.12, and `core` does without it.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from core.errors import StudioError
from core.spec.settings import Settings, format_number
from core.spec.training import KINDS

T = TypeVar("T")
Check = Callable[[Any], Any]  # returns the value in its type; raises Mismatch
VALUE_LIMIT = 60  # characters of a value in a message
NOT_FINITE = ("nan", "inf", "-inf")  # how events write the numbers that JSON lacks


@dataclass(frozen=True)
class Between:
    """The limits of a number in an `Annotated` type, both inclusive."""

    low: float
    high: float

    def describe(self) -> str:
        low = format_number(self.low)
        return f"at least {low}" if self.high >= 2**63 else f"between {low} and {format_number(self.high)}"


@dataclass(frozen=True)
class OneOf:
    """The allowed values of a text in an `Annotated` type."""

    choices: tuple[str, ...]


class _AnyFloat:
    """Marks a float that may be NaN or infinite."""


class _EventFloat:
    """Marks a float that may also be written as one of NOT_FINITE."""


Count = Annotated[int, Between(0, 2**63)]
Time = Annotated[float, Between(0, 32_503_680_000)]  # Unix seconds, up to the year 3000
Seconds = Annotated[float, Between(0, 1e12)]
Kind = Annotated[str, OneOf(KINDS)]  # of a dataset or run
Figure = Annotated[float, _AnyFloat]  # a measured value


class Mismatch(ValueError):
    """A value that its annotation does not allow.

    Args:
        problem: what is wrong, as it follows the name of the value.
        path: the keys and indices that lead to the value.
    """

    def __init__(self, problem: str, path: tuple[str, ...] = ()) -> None:
        self.problem, self.path = problem, path
        super().__init__(f"{'.'.join(path) or 'the value'} {problem}")

    @classmethod
    def of(cls, expected: str, value: Any) -> Mismatch:
        return cls(f"must be {expected}, got {_format(value)}")

    def under(self, key: object) -> Mismatch:
        """The same problem, seen from the value that holds `key`."""
        return Mismatch(self.problem, (str(key), *self.path))


def check_type(hint: Any, value: Any) -> Any:
    """Checks a value from JSON against an annotation.

    Args:
        hint: a dataclass, a TypedDict, or an annotation with the types of JSON in it.

    Returns:
        the value: objects as instances of their dataclass, arrays as tuples where the annotation says so.

    Raises:
        Mismatch: the type of the value, or of a value in it, is another one.
    """
    return _compile(hint)(value)


def check_event(hint: Any, event: Mapping[str, Any]) -> None:
    """Checks the fields of an event that are present; numbers may be written as text ("nan").

    Args:
        hint: the TypedDict of the event.

    Raises:
        Mismatch
    """
    for key, check in _compile_event(hint):
        if key in event:
            try:
                check(event[key])
            except Mismatch as e:
                raise e.under(key) from None


@functools.cache
def _compile_event(hint: Any) -> tuple[tuple[str, Check], ...]:
    hints = get_type_hints(hint, include_extras=True)
    return tuple((key, _compile(_allow_text_for_floats(h))) for key, h in hints.items())


def _allow_text_for_floats(hint: Any) -> Any:
    """The annotation in which every float may also be written as one of NOT_FINITE."""
    if hint is float:
        return Annotated[float, _EventFloat]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is list:
        return list[_allow_text_for_floats(arguments[0])]  # type: ignore[misc]
    if origin is tuple:
        return tuple[tuple(_allow_text_for_floats(a) for a in arguments)]  # type: ignore[misc]
    if origin in (Union, types.UnionType):
        return Union[tuple(_allow_text_for_floats(a) for a in arguments)]  # noqa: UP007 (built at run time)
    return hint


@functools.cache
def _compile(hint: Any) -> Check:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _compile_annotation(arguments[0], arguments[1:])
    if hint in _SCALARS:
        return _SCALARS[hint]
    if origin in (Union, types.UnionType):
        return _check_union(arguments)
    if origin is list:
        return functools.partial(_check_list, _compile(arguments[0]))
    if origin is tuple:
        return _check_tuple(arguments)
    if origin in (dict, Mapping):
        return functools.partial(_check_dict, _compile(arguments[1]))
    if isinstance(hint, type):
        return _compile_class(hint)
    return _accept


def _compile_class(hint: type) -> Check:
    if issubclass(hint, Settings):
        return functools.partial(_check_settings, hint)
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        parts = tuple((f, _compile(hints[f.name])) for f in dataclasses.fields(hint) if f.init)
        return functools.partial(_check_dataclass, hint, parts)
    if is_typeddict(hint):
        hints = get_type_hints(hint, include_extras=True)
        checks = {key: _compile(h) for key, h in hints.items()}
        required = frozenset(getattr(hint, "__required_keys__", ()))
        return functools.partial(_check_typed_dict, checks, required)
    if issubclass(hint, enum.Enum):
        return functools.partial(_check_enum, hint)
    return functools.partial(_check_list, _accept) if hint is list else _accept


# --- one kind of type each


def _accept(value: Any) -> Any:
    return value


def _check_text(value: Any) -> str:
    if not isinstance(value, str):
        raise Mismatch.of("text", value)
    return value


def _check_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Mismatch.of("true or false", value)
    return value


def _check_int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise Mismatch.of("a whole number", value)
    return value


def _check_float(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise Mismatch.of("a number", value)
    return value


def _check_figure(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise Mismatch.of("a number", value)
    return value


def _check_event_float(value: Any) -> Any:
    return value if isinstance(value, str) and value in NOT_FINITE else _check_figure(value)


def _check_none(value: Any) -> None:
    if value is not None:
        raise Mismatch.of("null", value)


def _check_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Mismatch.of("an object", value)
    return value


_SCALARS: dict[Any, Check] = {
    Any: _accept,
    object: _accept,
    str: _check_text,
    bool: _check_bool,
    int: _check_int,
    float: _check_float,
    None: _check_none,
    type(None): _check_none,
    dict: _check_object,
}


def _compile_annotation(hint: Any, marks: tuple[Any, ...]) -> Check:
    if _AnyFloat in marks:
        return _check_figure
    if _EventFloat in marks:
        return _check_event_float
    check = _compile(hint)
    for mark in marks:
        if isinstance(mark, Between):
            check = functools.partial(_check_limits, check, mark)
        elif isinstance(mark, OneOf):
            check = functools.partial(_check_choice, check, mark)
    return check


def _check_limits(check: Check, limits: Between, value: Any) -> Any:
    number = check(value)
    if not limits.low <= number <= limits.high:
        raise Mismatch.of(limits.describe(), value)
    return number


def _check_union(hints: tuple[Any, ...]) -> Check:
    checks = [_compile(h) for h in hints]

    def check(value: Any) -> Any:
        errors = []
        for attempt in checks:
            try:
                return attempt(value)
            except Mismatch as e:
                errors.append(e)
        raise max(errors, key=lambda e: len(e.path))

    return check


def _check_choice(check: Check, one_of: OneOf, value: Any) -> Any:
    if check(value) not in one_of.choices:
        raise Mismatch.of(f"one of {', '.join(one_of.choices)}", value)
    return value


def _check_enum(hint: type[enum.Enum], value: Any) -> enum.Enum:
    try:
        return hint(value)
    except ValueError:
        raise Mismatch.of(f"one of {', '.join(str(m.value) for m in hint)}", value) from None


def _check_items(checks: Iterator[Check] | list[Check], values: list[Any]) -> list[Any]:
    checked = []
    for i, (check, value) in enumerate(zip(checks, values, strict=True)):
        try:
            checked.append(check(value))
        except Mismatch as e:
            raise e.under(i) from None
    return checked


def _check_list(check: Check, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise Mismatch.of("a list", value)
    return _check_items([check] * len(value), list(value))


def _check_tuple(hints: tuple[Any, ...]) -> Check:
    if len(hints) == 2 and hints[1] is Ellipsis:
        item = _compile(hints[0])
        return lambda value: tuple(_check_list(item, value))
    checks = [_compile(h) for h in hints]

    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or len(value) != len(checks):
            raise Mismatch.of(f"a list of {len(checks)} values", value)
        return tuple(_check_items(checks, list(value)))

    return check


def _check_dict(check: Check, value: Any) -> dict[str, Any]:
    checked = {}
    for key, item in _check_object(value).items():
        try:
            checked[key] = check(item)
        except Mismatch as e:
            raise e.under(key) from None
    return checked


def _check_settings(hint: type[Settings], value: Any) -> Settings:
    try:
        return hint.from_json(value)
    except StudioError as e:
        raise Mismatch(f"cannot be used: {e.what.rstrip('.')}") from e


def _check_dataclass(hint: type, parts: tuple[tuple[dataclasses.Field[Any], Check], ...], value: Any) -> Any:
    values = {}
    for f, check in parts:
        if f.name in _check_object(value):
            try:
                values[f.name] = check(value[f.name])
            except Mismatch as e:
                raise e.under(f.name) from None
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise Mismatch("is missing", (f.name,))
    return hint(**values)


def _check_typed_dict(parts: dict[str, Check], required: frozenset[str], value: Any) -> dict[str, Any]:
    checked = dict(_check_object(value))
    for key, check in parts.items():
        if key in checked:
            try:
                checked[key] = check(checked[key])
            except Mismatch as e:
                raise e.under(key) from None
        elif key in required:
            raise Mismatch("is missing", (key,))
    return checked


def _format(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= VALUE_LIMIT else text[:VALUE_LIMIT] + " …"
