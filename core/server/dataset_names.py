"""Datasets of texts by their ids or names, as programs write them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from core.engine import Engine
from core.server.model_names import NEAREST, quote_name
from core.server.problems import Problem


def find_texts(engine: Engine, given: Sequence[str], field: str) -> list[str]:
    """The ids of datasets of texts; all of them for an empty list.

    Args:
        given: ids or names.
        field: of the request, for errors.

    Raises:
        Problem: a dataset is unknown (404), or its name is ambiguous; the workspace has none (422).
    """
    names = {d.id: d.name for d in engine.retrieval.list_documents()}
    if not names:
        raise Problem(422, "The workspace has no documents to answer from.", "Add texts under Data.", field)
    return [_find(names, text, field) for text in given] or list(names)


def _find(names: dict[str, str], given: str, field: str) -> str:
    """The dataset with this id or name.

    Args:
        names: of every dataset of texts, by id.
    """
    if given in names:
        return given
    found = [dataset_id for dataset_id, name in names.items() if name == given]
    if len(found) > 1:
        raise Problem(
            422,
            f"Several datasets of texts are called {quote_name(given)}.",
            f"Use one of their ids: {', '.join(found[:NEAREST])}.",
            field,
        )
    if not found:
        known = {text.casefold(): text for pair in names.items() for text in pair}
        near = [known[n] for n in difflib.get_close_matches(given.casefold(), known, NEAREST, 0.5)]
        listed = ", ".join(quote_name(n) for n in near or list(names.values())[:NEAREST])
        begin = "The nearest names" if near else "Names that it has"
        raise Problem(
            404, f"The studio has no dataset of texts {quote_name(given)}.", f"{begin}: {listed}.", field
        )
    return found[0]
