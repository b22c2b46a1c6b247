"""The terminal's verbs over reports of experiments: `report`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from core.cli.common import REFRESH_SECONDS, AddVerb, Outcome, ProgressBar
from core.engine import Engine
from core.engine.experiment_html import format_html
from core.engine.experiment_report import compare_reports, make_report, read_report, read_spec
from core.errors import SpecError
from core.spec.experiment import ExperimentSpec
from core.store.files import atomic_write

DIFFERS = 3  # exit code of `rerun` where figures do not agree


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `report`."""
    help = "Write the report of an experiment as one HTML file and one JSON file."
    p = add(group, "write", write_report, help)
    p.add_argument("experiment", help="An id or a name.")
    p.add_argument("--output", type=Path, required=True, help="The HTML file; the JSON file lies beside it.")
    help = (
        "Repeat the experiment of a report, and say whether the figures agree. The exit code is 0 where they "
        f"do, and {DIFFERS} where they do not."
    )
    add(group, "rerun", rerun_report, help, needs_model=True).add_argument("file", type=Path, metavar="FILE")


def write_report(engine: Engine, args: argparse.Namespace) -> Any:
    experiment = engine.experiments.find(args.experiment)
    report = make_report(engine.judges.results(experiment.id))
    page, data = args.output.with_suffix(".html"), args.output.with_suffix(".json")
    for path, text in ((page, format_html(report)), (data, json.dumps(report, ensure_ascii=False, indent=1))):
        with atomic_write(path, "w") as f:
            f.write(text)
        print(path)
    return {"html": str(page), "json": str(data), "sha256": report["sha256"]}


def rerun_report(engine: Engine, args: argparse.Namespace) -> Any:
    try:
        report = read_report(args.file.read_bytes())
    except OSError as e:
        raise SpecError(
            f"{args.file} cannot be read: {e.strerror or e}.", "Give a report's JSON file."
        ) from e
    engine.bases.current(wait=True)
    spec = read_spec(report)
    spec = ExperimentSpec.from_json({**spec.to_json(), "name": f"{spec.name[:110]} (again)"})
    key, bar = engine.experiments.start(spec, is_fresh=True), ProgressBar()
    while not (status := engine.experiments.wait(key, REFRESH_SECONDS)).has_ended:
        if not args.json:
            bar.show(status.share, status.text)
    found = compare_reports(report, make_report(engine.experiments.results(key)))
    for agreement in found:
        print(agreement.describe())
    agrees = bool(found) and all(a.agrees for a in found)
    print("The figures agree." if agrees else "The figures do not agree.")
    value = {"agrees": agrees, "experiment": key, "rows": {a.row: a.describe() for a in found}}
    return Outcome(value, 0 if agrees else DIFFERS)
