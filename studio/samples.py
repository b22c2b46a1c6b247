"""The sample data that ships with the studio: importing it at once, and a first question to ask.

Knows which samples there are and what to call them. Knows nothing of what is in them.
"""

from __future__ import annotations

from core.engine import Engine

# In the order of import: the lists show the newest first, and what is only for measuring comes last there.
NAMES = {"questions": "Sample held-out questions", "task": "Sample task", "domain": "Sample domain"}
KINDS = {"questions": "task", "task": "task", "domain": "domain"}


def import_samples(engine: Engine) -> list[str]:
    """Imports the sample domain, the task and the held-out questions; what is already here is not imported twice.

    Returns:
        the ids of the new datasets.
    """
    here = {d.name for d in engine.datasets.list()}
    given = engine.samples
    files = {"questions": [given.questions_file], "task": [given.task], "domain": given.domain}
    return [
        engine.datasets.import_files(files[part], name, kind=KINDS[part]).id
        for part, name in NAMES.items()
        if name not in here
    ]


def find_held_out(engine: Engine) -> str:
    """The id of the held-out questions' dataset, or nothing."""
    return next((d.id for d in engine.datasets.list() if d.name == NAMES["questions"]), "")


def suggest_question(engine: Engine) -> str:
    """A held-out question of the sample domain, once the sample data is here; else nothing."""
    if not find_held_out(engine):
        return ""
    first = engine.samples.questions()
    return str(first[0]["messages"][-2]["content"]) if first else ""
