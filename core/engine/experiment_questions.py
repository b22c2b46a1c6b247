"""What an experiment asks: its questions, its general questions, and the passages for each."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from core.data.samples import Samples
from core.data.tokens.thoughts import split_thoughts
from core.engine.datasets import Datasets
from core.errors import SpecError
from core.retrieve.passages import Passage
from core.retrieve.prompt import PassagePrompt, build_prompt
from core.spec.experiment import ExperimentSpec
from core.spec.retrieval import RetrievalSettings
from core.store.experiments import CitedPassage

Message = dict[str, Any]


class Search(Protocol):
    """Searches documents, as `core.engine.retrieval.Retrieval` does."""

    def search(
        self,
        dataset_ids: str | Sequence[str],
        query: str,
        k: int | None = None,
        settings: RetrievalSettings | None = None,
    ) -> list[Passage]:
        """The best passages for a question, the best first."""

    def list_documents(self) -> list[Any]:
        """The datasets that can be searched."""


@dataclass(frozen=True)
class AskedQuestion:
    """A question of an experiment.

    Attributes:
        index: of its row in the split, from 0.
        history: the messages before the question.
        reference: the gold answer without its thought; "" without one.
    """

    index: int
    history: tuple[Message, ...]
    text: str
    reference: str


def read_questions(datasets: Datasets, spec: ExperimentSpec) -> list[AskedQuestion]:
    """The questions of an experiment.

    Raises:
        NotFound: the dataset. SpecError: it holds texts, or the split is empty.
    """
    dataset = datasets.get(spec.dataset)
    if dataset.kind != "task":
        raise SpecError(
            f"An experiment must have questions, and {dataset.name!r} holds texts.",
            "Choose a dataset of questions.",
        ).at("dataset")
    found = list_questions(datasets.rows(dataset.id, spec.split, spec.limit), spec.system)
    if not found:
        raise SpecError(
            f"The split {spec.split!r} of {dataset.name!r} has no question.", "Choose another split."
        ).at("split")
    return found


def list_questions(rows: Sequence[dict[str, Any]], system: str = "") -> list[AskedQuestion]:
    """The last questions of conversations, each with the answer behind it, if it has one."""
    found = []
    for index, row in enumerate(rows):
        messages, reference = list(row["messages"]), ""
        if messages and messages[-1]["role"] == "assistant":
            reference = split_thoughts(str(messages.pop()["content"]))[1].strip()
        if not messages or messages[-1]["role"] != "user" or not str(messages[-1]["content"]).strip():
            continue
        history = [m for m in messages[:-1] if not (system and m["role"] == "system")]
        start = [{"role": "system", "content": system}] if system else []
        found.append(AskedQuestion(index, (*start, *history), str(messages[-1]["content"]), reference))
    return found


def read_general(samples: Samples, base: str, count: int) -> list[AskedQuestion]:
    """General questions in the language of a base, which show what a mix has forgotten."""
    return list_questions(samples.general_for(base).general_questions()[:count]) if count else []


def hash_questions(questions: Sequence[AskedQuestion]) -> str:
    """A sha256 over questions and references."""
    parts = [[q.index, list(q.history), q.text, q.reference] for q in questions]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# --- passages


def list_sources(datasets: Datasets, search: Search, spec: ExperimentSpec) -> list[str]:
    """The datasets whose documents are searched.

    Raises:
        SpecError: none has documents. NotFound
    """
    if spec.sources:
        return [datasets.get(source).id for source in spec.sources]
    found = [d.id for d in search.list_documents()]
    if not found:
        raise SpecError(
            "A row reads documents, and the workspace has no dataset of texts.",
            'Import documents, or set documents to "off".',
        ).at("sources")
    return found


@dataclass(frozen=True)
class FoundPassages:
    """What a search found, and how many seconds it took."""

    passages: tuple[Passage, ...]
    seconds: float


def find_passages(
    search: Search, sources: Sequence[str], question: AskedQuestion, settings: RetrievalSettings | None
) -> FoundPassages | None:
    """The passages for a question; None for a row without documents."""
    if settings is None:
        return None
    begin = time.perf_counter()
    found = search.search(sources, question.text, settings.passages, settings)
    return FoundPassages(tuple(found), time.perf_counter() - begin)


def make_writer(
    question: AskedQuestion, found: FoundPassages | None
) -> Callable[[Callable[[str], bool] | None], tuple[str, PassagePrompt | None]]:
    """Writes the prompt of a question with as many passages as fit.

    Returns:
        a function from the test whether a prompt fits to (the text of the question, the prompt).
    """

    def write(fits: Callable[[str], bool] | None) -> tuple[str, PassagePrompt | None]:
        if found is None:
            return question.text, None
        prompt = build_prompt(question.text, found.passages, fits)
        return prompt.text, prompt

    return write


def describe_passages(prompt: PassagePrompt | None) -> tuple[CitedPassage, ...]:
    """The passages of a prompt, as a cell stores them."""
    used = prompt.used if prompt else ()
    return tuple(CitedPassage(i, p.title, p.text, p.score) for i, p in enumerate(used, 1))
