"""The terminal's verb for gates: `adapters calibrate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.cli.common import AddVerb, ProgressBar
from core.cli.inspections import find_dataset
from core.data.formats.readers import read_files
from core.engine import Engine
from core.engine.calibration_data import GENERAL
from core.errors import SpecError
from core.progress import Progress

QUESTION_COLUMNS = ("question", "prompt", "instruction", "input", "text")


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the verb to the group `adapters`."""
    p = add(
        group,
        "calibrate",
        calibrate_adapter,
        "Calibrate the gate of an adapter, so that its weight can be on Auto. No labels are needed.",
        needs_model=True,
    )
    p.add_argument("adapter", help="An id or a name.")
    p.add_argument(
        "--own",
        default="",
        metavar="DATASET",
        help="Data like what the adapter is for. Default: what it was trained on.",
    )
    p.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="DATASET",
        help=f'Data that it is not for, or "{GENERAL}" for general text. May be given several times. '
        "Default: general text and the datasets of other adapters.",
    )
    p.add_argument(
        "--questions",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="Use questions only. With a file, its questions are the adapter's own: one a line, or a column "
        "named question.",
    )


def calibrate_adapter(engine: Engine, args: argparse.Namespace) -> Any:
    engine.resident_base.wait()
    adapter_id = engine.library.find_adapter(args.adapter)
    own = find_dataset(engine, args.own) if args.own else None
    against = [given if given == GENERAL else find_dataset(engine, given) for given in args.against]
    texts = read_questions(Path(args.questions)) if isinstance(args.questions, str) else []
    if texts and own:
        raise SpecError("--own and a file of questions are two answers to one question.", "Give one of them.")
    bar = ProgressBar()
    result: Any = None
    for part in engine.calibration.start(adapter_id, own, against, bool(args.questions), texts):
        result = part
        if isinstance(part, Progress) and not args.json:
            bar.show(part.done / part.total, part.text)
    print(f"{engine.library.adapter(adapter_id).name}: {result.text}.")
    if result.change:
        print(result.change)
    return {
        "adapter": adapter_id,
        "calibration": result.calibration.to_json(),
        "usable": not result.calibration.obstacle,
        "text": result.text,
        "previous_threshold": result.previous,
    }


def read_questions(path: Path) -> list[str]:
    """The questions in a file: the lines of a text, or a column of a table.

    Raises:
        DataError: the file cannot be read. SpecError: it has no question.
    """
    rows = [row.values for row in read_files([path])]
    found = [
        str(next((row[c] for c in QUESTION_COLUMNS if row.get(c)), "")).splitlines()
        if set(row) == {"text"}
        else [str(next((row[c] for c in QUESTION_COLUMNS if row.get(c)), ""))]
        for row in rows
    ]
    texts = [text.strip() for lines in found for text in lines if text.strip()]
    if not texts:
        raise SpecError(
            f"{path.name} has no question.",
            f"Write one a line, or name a column {QUESTION_COLUMNS[0]}.",
        )
    return texts
