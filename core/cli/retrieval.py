"""The terminal's verb `search`, and documents for the verb `generate`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from core.cli.common import REFRESH_SECONDS, AddVerb, ProgressBar, add_setting, read_settings
from core.cli.inspections import find_dataset
from core.engine import Engine
from core.engine.retrieval import DATASET_LIMIT
from core.retrieve.passages import Passage
from core.retrieve.prompt import PassagePrompt
from core.spec.retrieval import RetrievalSettings

TEXT_LIMIT = 300  # characters of a passage that are printed


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the verb."""
    p = add(group, "search", search, "Search the documents of a dataset for a question.")
    p.add_argument("dataset", help="Id or name of a dataset of texts; several separated by commas.")
    p.add_argument("question")
    for f in RetrievalSettings.__dataclass_fields__.values():
        add_setting(p, f)


def add_documents_option(p: argparse.ArgumentParser) -> None:
    """Adds the option `--documents`."""
    p.add_argument(
        "--documents",
        metavar="DATASET",
        help="Answer from the documents of a dataset of texts, by id or name; several separated by commas "
        f"(at most {DATASET_LIMIT}). The passages are cited as [1], [2].",
    )


def search(engine: Engine, args: argparse.Namespace) -> Any:
    settings = RetrievalSettings(**read_settings(args, RetrievalSettings))
    passages = find_passages(engine, args.dataset, args.question, settings)
    _print_passages(passages)
    if not passages:
        print("Nothing found. --threshold 0 shows the best passages all the same.")
    return [passage.to_json() for passage in passages]


def find_passages(
    engine: Engine, given: str, question: str, settings: RetrievalSettings | None = None
) -> list[Passage]:
    """The passages of some datasets for a question; shows the progress of indexes that are missing.

    Args:
        given: ids or names of datasets, separated by commas.
    """
    ids = [find_dataset(engine, one.strip()) for one in given.split(",")]
    bar = ProgressBar()
    for one in ids:
        key = engine.retrieval.index(one, settings)
        status = engine.retrieval.status(key)
        while not status.has_ended:
            bar.show(status.share, status.text)
            time.sleep(REFRESH_SECONDS)
            status = engine.retrieval.status(key)
    return engine.retrieval.search(ids, question, settings=settings)


def _print_passages(passages: Sequence[Passage], first: int = 1) -> None:
    for number, passage in enumerate(passages, first):
        text = " ".join(passage.text.split())
        cut = f"{text[:TEXT_LIMIT]}..." if len(text) > TEXT_LIMIT else text
        place = f"{passage.dataset_name}, characters {passage.start} to {passage.end}"
        print(f"[{number}] {passage.score:.3f}  {passage.title} ({place})\n    {cut}")


def print_prompt(prompt: PassagePrompt) -> None:
    """Prints the passages of a prompt, and how many did not fit."""
    _print_passages(prompt.used)
    if not prompt.used and not prompt.left_out:
        print("No passage was found.")
    for passage in prompt.left_out:
        print(f"Left out, because the base's context has no room for it: {passage.title}")
