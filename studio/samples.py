"""The sample data that ships with the studio: imports it, and suggests a first question.

The embedded base gets the station, in its invented language. Every other base gets the museum, in real
English.
"""

from __future__ import annotations

from typing import Any

from core.data.samples import FOLDERS, Samples
from core.engine import Engine

# In the order of import. Lists show the newest first, so the questions, which only measure, come last there.
NAMES = {"questions": "Sample held-out questions", "task": "Sample task", "domain": "Sample domain"}
MUSEUM_NAMES = {"questions": "Museum held-out questions", "task": "Museum task", "domain": "Museum domain"}
KINDS = {"questions": "task", "task": "task", "domain": "domain"}


def choose_samples(engine: Engine) -> tuple[Samples, dict[str, str]]:
    """The sample files that suit the resident base, and the names of their datasets."""
    sources = engine.samples.general_for(engine.bases.current().name)
    return sources, MUSEUM_NAMES if sources.folder == FOLDERS["museum"] else NAMES


def import_samples(engine: Engine) -> list[str]:
    """Imports the sample domain, the sample task and the held-out questions, except those already imported.

    Returns:
        the ids of the new datasets.
    """
    present = {d.name for d in engine.datasets.list()}
    sources, names = choose_samples(engine)
    files = {"questions": [sources.questions_file], "task": [sources.task], "domain": sources.domain}
    return [
        engine.datasets.import_files(files[part], name, kind=KINDS[part]).id
        for part, name in names.items()
        if name not in present
    ]


def is_sample(dataset: Any) -> bool:
    """Whether a dataset is one that `import_samples` makes."""
    return dataset.name in (*NAMES.values(), *MUSEUM_NAMES.values())


def list_held_out(engine: Engine) -> list[str]:
    """Ids of the datasets of held-out questions, those of the resident base's sample first."""
    _, names = choose_samples(engine)
    datasets = engine.datasets.list()
    wanted = dict.fromkeys((names["questions"], NAMES["questions"], MUSEUM_NAMES["questions"]))
    return [d.id for name in wanted for d in datasets if d.name == name]


def suggest_question(engine: Engine) -> str:
    """Suggests a held-out question about the sample domain; empty when the sample data is not imported."""
    if not list_held_out(engine):
        return ""
    questions = choose_samples(engine)[0].questions()
    return str(questions[0]["messages"][-2]["content"]) if questions else ""
