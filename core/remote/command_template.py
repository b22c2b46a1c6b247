"""Command templates: a line that people write once, filled in for every run that goes elsewhere.

Knows quoting. Starts nothing. No shell of ours ever reads a template: it is split into arguments first,
and filled in after that, so that a value never becomes two arguments.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from core.errors import SpecError

ALLOWED = ("command", "bundle", "result", "name")
EXAMPLE = """For example: sbatch --wrap "{command}"."""
PLACE = re.compile(r"\{([^{}]*)\}")
BARE = re.compile(r"(?:-*[\w-]+=)?\{\w+\}")  # an argument that is one value, or an option and its value


def split(template: str) -> list[str]:
    """The arguments of a template, not filled in yet.

    Raises:
        SpecError: an open quote, something else in braces, or nothing that would run.
    """
    try:
        words = shlex.split(template)
    except ValueError as e:
        raise SpecError(
            f"The template {template!r} cannot be split into arguments ({e}).",
            f"Close every quote. {EXAMPLE}",
        ) from e
    names = [n for w in words for n in PLACE.findall(w)]
    known = ", ".join("{" + n + "}" for n in ALLOWED)
    if unknown := [n for n in names if n not in ALLOWED]:
        raise SpecError(f"The template has {{{unknown[0]}}}.", f"Only {known} may stand in braces.")
    if any(c in PLACE.sub("", w) for w in words for c in "{}"):
        raise SpecError("The template has a single brace.", f"Only {known} may stand in braces.")
    if not {"command", "bundle"} & set(names):
        raise SpecError(
            "The template would run nothing of ours: it has neither {command} nor {bundle}.", EXAMPLE
        )
    return words


def fill(template: str, command: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The arguments of a template, filled in.

    {command} is always one argument, quoted for the shell that will read it. Another value stands as it is where it is an
    argument of its own, or an option's (`--job-name={name}`); inside a longer argument, which is a line for a shell, it is quoted.

    Args:
        command: the words of {command}. values: of all the others.

    Raises:
        SpecError: as `split`; or a value stands where the quotes around it would be closed by its own.
    """
    words = {"command": list(command), **{n: [values[n]] for n in ALLOWED if n != "command"}}
    return [_filled(w, words) for w in split(template)]


def _filled(argument: str, words: Mapping[str, list[str]]) -> str:
    if BARE.fullmatch(argument):
        return PLACE.sub(
            lambda m: shlex.join(words["command"]) if m[1] == "command" else words[m[1]][0], argument
        )
    line = PLACE.sub(lambda m: shlex.join(words[m[1]]), argument)
    if PLACE.search(argument) and _read(line) != [
        t for token in _read(argument) or [] for t in _expected(token, words)
    ]:
        fix = "Leave the inner quotes out: what is filled in is quoted already."
        raise SpecError(f"In {argument!r}, something is filled in between quotes inside of quotes.", fix)
    return line


def _read(line: str) -> list[str] | None:
    """What a shell would make of a line, or None where it would not take it."""
    try:
        return shlex.split(line)
    except ValueError:
        return None


def _expected(token: str, words: Mapping[str, list[str]]) -> list[str]:
    """A word of the line with its values in place, several where {command} is in it."""
    found = [""]
    rest = PLACE.split(token)  # text, name, text, name, ... text
    for i, part in enumerate(rest):
        given = words[part] if i % 2 else [part]
        found = [*found[:-1], found[-1] + given[0], *given[1:]]
    return found
