"""Command templates: a command line written once, with placeholders that are filled in for every bundle.

    sbatch --job-name={name} --wrap "{command}"

The template is split into arguments first and filled in afterwards, without a shell, so that a value never
becomes two arguments. Inside an argument that another shell will read, values are quoted. A placeholder
inside nested quotes is refused: the quotes around the value would close the quotes around the placeholder.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from core.errors import SpecError

NAMES = ("command", "bundle", "result", "name")
EXAMPLE = """For example: sbatch --wrap "{command}"."""
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# An argument that is one value, or an option and its value, as in --job-name={name}.
WHOLE_ARGUMENT = re.compile(r"(?:-*[\w-]+=)?\{\w+\}")


def split(template: str) -> list[str]:
    """Splits a template into arguments, with the placeholders still in them.

    Raises:
        SpecError: an open quote, an unknown placeholder, or a template that would not train the bundle.
    """
    try:
        arguments = shlex.split(template)
    except ValueError as e:
        raise SpecError(
            f"The template {template!r} cannot be split into arguments ({e}).",
            f"Close every quote. {EXAMPLE}",
        ) from e
    names = [n for a in arguments for n in PLACEHOLDER.findall(a)]
    allowed = ", ".join("{" + n + "}" for n in NAMES)
    if unknown := [n for n in names if n not in NAMES]:
        raise SpecError(f"The template has the unknown placeholder {{{unknown[0]}}}.", f"Use only {allowed}.")
    if any(c in PLACEHOLDER.sub("", a) for a in arguments for c in "{}"):
        raise SpecError("The template has a single brace.", f"Use braces only in {allowed}.")
    if not {"command", "bundle"} & set(names):
        raise SpecError(
            "The template would not train the bundle: it has neither {command} nor {bundle}.", EXAMPLE
        )
    return arguments


def fill(template: str, command: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Splits a template and fills in its placeholders.

    {command} becomes part of one argument, quoted for the shell that will read it. Any other value is
    inserted unquoted where it is a whole argument or the value of an option (`--job-name={name}`), and quoted
    inside a longer argument, which is a line for a shell.

    Args:
        command: the arguments of {command}.
        values: name to value, for the other placeholders.

    Raises:
        SpecError: as `split`; or a placeholder is inside nested quotes.
    """
    words = {"command": list(command), **{n: [values[n]] for n in NAMES if n != "command"}}
    return [_fill_argument(a, words) for a in split(template)]


def _fill_argument(argument: str, words: Mapping[str, list[str]]) -> str:
    """Fills in one argument.

    Args:
        words: name to the words that the placeholder stands for.
    """
    if WHOLE_ARGUMENT.fullmatch(argument):
        return PLACEHOLDER.sub(
            lambda m: shlex.join(words["command"]) if m[1] == "command" else words[m[1]][0], argument
        )
    line = PLACEHOLDER.sub(lambda m: shlex.join(words[m[1]]), argument)
    if PLACEHOLDER.search(argument):
        expected = [w for token in _split_line(argument) or [] for w in _expand(token, words)]
        if _split_line(line) != expected:
            raise SpecError(
                f"In {argument!r}, a placeholder is inside nested quotes.",
                "Remove the inner quotes: values are quoted when they are filled in.",
            )
    return line


def _split_line(line: str) -> list[str] | None:
    """Splits a line as a shell does; None where a shell would refuse it."""
    try:
        return shlex.split(line)
    except ValueError:
        return None


def _expand(token: str, words: Mapping[str, list[str]]) -> list[str]:
    """A token of a line with its values in place; several words where {command} is in it."""
    expanded = [""]
    parts = PLACEHOLDER.split(token)  # text, name, text, name, ... text
    for i, part in enumerate(parts):
        inserted = words[part] if i % 2 else [part]
        expanded = [*expanded[:-1], expanded[-1] + inserted[0], *inserted[1:]]
    return expanded
