"""Documents that answers cite: the datasets to choose from, their indexes, and the button for the extra.

Mix and Compare have one each. Nothing is chosen at first, so answers come without documents until the user
chooses some.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.engine.retrieval import DATASET_LIMIT, IndexStatus
from core.errors import StudioError
from core.retrieve.encoders import WORDLLAMA
from core.retrieve.passages import Passage
from studio import events, fields, labels
from studio.tree import Node, button, node, progress_bar, view

POLL_SECONDS = 0.2
INFO = "Answers come from passages of these texts, and cite them as [1], [2]. Nothing chosen: no documents."


@dataclass(frozen=True)
class DocumentsField:
    """The components.

    Attributes:
        choice: the datasets of texts.
        extra: says how passages are found, with a button that installs the embeddings.
    """

    choice: gr.Dropdown
    extra: gr.HTML


def documents_field(name: str) -> DocumentsField:
    """Makes the components.

    Args:
        name: of the tab, in lower case.
    """
    with gr.Accordion("Documents", open=False, elem_classes="quiet-fold", elem_id=f"{name}-documents"):
        choice = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            max_choices=DATASET_LIMIT,
            label="Datasets of texts",
            info=INFO,
            elem_id=f"{name}-documents-choice",
        )
        extra = view(elem_id=f"{name}-documents-extra")
    return DocumentsField(choice, extra)


def wire(made: DocumentsField, engine: Engine, library_changed: events.EventGroup) -> None:
    """Connects the lists, and the button that installs the extra."""
    library_changed.add(refresh, [made.choice], [made.choice, made.extra])
    events.bind(made.extra.act, engine, install, None, [made.extra], concurrency_limit=2)


def refresh(engine: Engine, chosen: Any) -> tuple[Any, Node]:
    """Updates the datasets to choose from; those that are chosen and still exist stay chosen."""
    names = labels.label_datasets(engine.retrieval.list_documents()[::-1])
    present = read_choice(chosen)
    value = [c for c in present if c in names]
    choices = [(name, dataset_id) for dataset_id, name in reversed(names.items())]
    return fields.update_choices(choices, value, present), render_extra(engine)


def read_choice(chosen: Any) -> list[str]:
    """The ids of the datasets that are chosen."""
    return [c for c in chosen if isinstance(c, str)] if isinstance(chosen, (list, tuple)) else []


def wait_for_indexes(engine: Engine, ids: Sequence[str]) -> Iterator[str]:
    """Builds the indexes that are missing; yields what is being done, a sentence at a time.

    Raises:
        StudioError: a dataset cannot be indexed.
    """
    for dataset_id in ids:
        key = engine.retrieval.index(dataset_id)
        while not (status := engine.retrieval.status(key)).has_ended:
            yield _describe(status)
            time.sleep(POLL_SECONDS)
        if status.error is not None:
            raise status.error


def _describe(status: IndexStatus) -> str:
    share = f" ({100 * status.share:.0f} %)" if status.total else ""
    return f"The documents are being indexed, once. {status.text}{share}."


def find_passages(engine: Engine, ids: Sequence[str], question: str) -> list[Passage]:
    """The passages for a question.

    Raises:
        StudioError: see `core.engine.retrieval.Retrieval.search`.
    """
    return engine.retrieval.search(ids, question)


def render_extra(engine: Engine) -> Node:
    """How passages are found here, and the button that adds embeddings."""
    extra = next(e for e in engine.retrieval.extras() if e.name == WORDLLAMA)
    if extra.is_installed:
        return node("p", "Passages are found by their words and by static embeddings.", cls="quiet")
    about = (
        "Passages are found by their words. Static embeddings also find what says the same in other words."
    )
    act = {"do": "install", "name": extra.name}
    return node(
        "div",
        node("p", about, cls="quiet"),
        node("p", extra.about, cls="quiet"),
        button(f"Install {extra.package}", act, "quiet small"),
        cls="documents-extra",
    )


def install(engine: Engine, event: gr.EventData) -> Iterator[Node]:
    """Installs the extra; yields its progress."""
    data = event._data if isinstance(event._data, dict) else {}
    key = engine.retrieval.install(str(data.get("name", "")))
    while not (status := engine.retrieval.install_status(key)).has_ended:
        yield node("div", node("p", f"{status.text} {key}", cls="quiet"), progress_bar(1.0, "Installation"))
        time.sleep(POLL_SECONDS)
    if status.error is not None:
        yield render_extra(engine)
        raise StudioError(status.problem)
    yield render_extra(engine)
