"""The sample data that ships with the studio: imports it, and suggests a first question."""

from __future__ import annotations

from core.engine import Engine

# In the order of import. Lists show the newest first, so the questions, which only measure, come last there.
NAMES = {"questions": "Sample held-out questions", "task": "Sample task", "domain": "Sample domain"}
KINDS = {"questions": "task", "task": "task", "domain": "domain"}


def import_samples(engine: Engine) -> list[str]:
    """Imports the sample domain, the sample task and the held-out questions, except those already imported.

    Returns:
        the ids of the new datasets.
    """
    present = {d.name for d in engine.datasets.list()}
    sources = engine.samples
    files = {"questions": [sources.questions_file], "task": [sources.task], "domain": sources.domain}
    return [
        engine.datasets.import_files(files[part], name, kind=KINDS[part]).id
        for part, name in NAMES.items()
        if name not in present
    ]


def find_held_out(engine: Engine) -> str:
    """Finds the id of the dataset of held-out questions; empty when it is not imported."""
    return next((d.id for d in engine.datasets.list() if d.name == NAMES["questions"]), "")


def suggest_question(engine: Engine) -> str:
    """Suggests a held-out question about the sample domain; empty when the sample data is not imported."""
    if not find_held_out(engine):
        return ""
    questions = engine.samples.questions()
    return str(questions[0]["messages"][-2]["content"]) if questions else ""
