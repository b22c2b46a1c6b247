"""Names of layers: in sentences, and from the names of one tool to those of the base."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

SHOWN = 3
Prefixes = tuple[str, str]  # what the names begin with in the adapter, and in the base


def list_names(names: Iterable[str]) -> str:
    """Some names, and how many more there are."""
    every = list(dict.fromkeys(names))
    shown = ", ".join(name[:120] for name in every[:SHOWN])
    return f"{shown} and {len(every) - SHOWN} more" if len(every) > SHOWN else shown


def find_prefixes(strangers: Sequence[str], known: Collection[str]) -> Prefixes | None:
    """Finds the one change of a common beginning that turns all names into known ones.

    Tools differ in what stands before the blocks: "model.", "language_model.", or nothing.

    Returns:
        None where there is none, or several that differ.
    """
    if not strangers:
        return None
    found: set[Prefixes] = set()
    first = strangers[0].split(".")
    for cut in range(min(len(first), 5)):
        prefix, rest = ".".join([*first[:cut], ""]) if cut else "", ".".join(first[cut:])
        for name in known:
            if name == rest or name.endswith(f".{rest}"):
                found.add((prefix, name[: len(name) - len(rest)]))
        if found:
            break
    good = [p for p in found if all(n.startswith(p[0]) and rename(n, p) in known for n in strangers)]
    return good[0] if len(good) == 1 else None


def rename(name: str, prefixes: Prefixes) -> str:
    """A name with another beginning."""
    return prefixes[1] + name.removeprefix(prefixes[0])
