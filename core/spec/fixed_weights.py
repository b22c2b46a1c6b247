"""The one check for everything that needs a number for every weight, so that no weight may be on Auto."""

from __future__ import annotations

from collections.abc import Mapping

from core.errors import SpecError
from core.spec.mix import Mix


def require_numbers(mix: Mix, purpose: str, names: Mapping[str, str] | None = None) -> Mix:
    """Returns the mix if every weight is a number.

    Args:
        purpose: what needs the numbers, as the beginning of a sentence: "A baked adapter".
        names: adapter id -> display name; ids are shown for missing names.

    Raises:
        SpecError: a weight is on Auto.
    """
    if not mix.auto:
        return mix
    shown = [(names or {}).get(a, a) for a in mix.auto]
    subject = f"{', '.join(shown[:-1])} and {shown[-1]} are" if len(shown) > 1 else f"{shown[0]} is"
    raise SpecError(
        f"{purpose} needs a number for every weight, and {subject} on Auto, which follows each prompt.",
        "Set them to numbers first." if len(shown) > 1 else "Set it to a number first.",
    )
