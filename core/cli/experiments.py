"""The terminal's verbs over experiments and promotions: `experiment`, `promote` and `rollback`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from core.cli.common import REFRESH_SECONDS, AddVerb, Outcome, ProgressBar, print_table, warn_of_damaged
from core.cli.inspections import find_dataset
from core.cli.judges import print_judges
from core.engine import Engine
from core.engine.experiment_results import ExperimentResults
from core.engine.promotions import EXIT_CODES
from core.errors import SpecError
from core.spec.answer_metrics import ANSWER_METRICS
from core.spec.experiment import ExperimentSpec, format_yaml, parse_yaml
from core.spec.experiment_presets import ask_what_helps, plan_size_series
from core.store.files import atomic_write

PRESETS = ("what-helps", "two-sizes")
SHOWN = ("factuality", "f1", "citation_coverage", "unsupported", "latency")  # columns of a short table


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `experiment`."""
    help = "Run an experiment, from a YAML file or a preset, and wait until it ends."
    p = add(group, "run", run_experiment, help, needs_model=True)
    p.add_argument("--config", type=Path, help="A YAML file, as `experiment config` prints it.")
    _add_preset(p)
    help = "Print a preset, or a stored experiment, as YAML."
    p = add(group, "config", print_config, help)
    p.add_argument("experiment", nargs="?", default="", help="An id or a name; without one, a preset.")
    _add_preset(p)
    p = add(group, "resume", resume_experiment, "Run what an experiment lacks.", needs_model=True)
    p.add_argument("experiment", help="An id or a name.")
    p = add(group, "show", show_experiment, "Show a table; without an id, list all experiments.")
    p.add_argument("experiment", nargs="?", default="")
    p = add(group, "compare", compare_rows, "The difference of two rows of one group, with its interval.")
    p.add_argument("experiment")
    p.add_argument("first")
    p.add_argument("second")
    p = add(group, "csv", write_csv, "Print the table as CSV, with the ends of every interval.")
    p.add_argument("experiment")
    p.add_argument("--output", type=Path, help="Write a file instead of printing.")


def _add_preset(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--preset",
        choices=PRESETS,
        default="what-helps",
        help="what-helps: base, base + documents, mix, mix + documents. two-sizes: retrieval, adapter and "
        "both on a base of 0.5B and on one of 3B, and a hosted model.",
    )
    p.add_argument("--dataset", default="", help="Questions, by id or name.")
    p.add_argument(
        "--documents", action="append", default=[], help="Datasets of texts. Default: all of them."
    )
    p.add_argument("--mix", default="", help="The mix, or an adapter by id or name.")
    p.add_argument("--large-mix", default="", help="two-sizes: the mix of the larger base.")
    p.add_argument("--split", default="test", choices=("test", "val", "train", "all"))
    p.add_argument("--limit", type=int, default=0, help="At most this many questions; 0 means all.")
    p.add_argument("--name", default="", help="Name of the experiment.")


def _read_preset(engine: Engine, args: argparse.Namespace) -> ExperimentSpec:
    if not args.dataset or not args.mix:
        raise SpecError("A preset must have --dataset and --mix.", "Give both, or a file with --config.")
    dataset = find_dataset(engine, args.dataset)
    sources = [find_dataset(engine, text) for text in args.documents]
    if args.preset == "two-sizes":
        spec = plan_size_series(dataset, args.mix, args.large_mix or args.mix, sources)
    else:
        spec = ask_what_helps(dataset, args.mix, sources)
    changes: dict[str, Any] = {"split": args.split, "limit": args.limit}
    if args.name:
        changes["name"] = args.name
    return ExperimentSpec.from_json({**spec.to_json(), **changes})


def run_experiment(engine: Engine, args: argparse.Namespace) -> Any:
    if args.config:
        spec = parse_yaml(_read_text(args.config))
        places = {
            "dataset": find_dataset(engine, spec.dataset),
            "sources": [find_dataset(engine, text) for text in spec.sources],
        }
        spec = ExperimentSpec.from_json({**spec.to_json(), **places})
    else:
        spec = _read_preset(engine, args)
    engine.bases.current(wait=True)
    return _follow(engine, engine.experiments.start(spec), args)


def resume_experiment(engine: Engine, args: argparse.Namespace) -> Any:
    engine.bases.current(wait=True)
    experiment = engine.experiments.find(args.experiment)
    engine.experiments.resume(experiment.id)
    return _follow(engine, experiment.id, args)


def _follow(engine: Engine, experiment_id: str, args: argparse.Namespace) -> Any:
    """Waits for an experiment and prints its table; an error of one row is raised behind it."""
    bar = ProgressBar()
    while True:
        status = engine.experiments.wait(experiment_id, REFRESH_SECONDS)
        if not args.json:
            bar.show(status.share, status.text)
        if status.has_ended:
            break
        time.sleep(REFRESH_SECONDS)
    value = _print_results(engine.judges.results(experiment_id))
    if status.error is not None:
        raise status.error
    return value


def _print_results(results: ExperimentResults) -> dict[str, Any]:
    shown = [m for m in SHOWN if m in results.metrics]
    table: list[list[Any]] = [["row", *(ANSWER_METRICS[m].label for m in shown), "state"]]
    for row in results.rows:
        cells = [(row.figures or {}).get(m) for m in shown]
        values = [f"{c.value:.3f} ({c.low:.3f} to {c.high:.3f})" if c else None for c in cells]
        table.append([row.name, *values, row.state])
    print_table(table)
    for m in shown:
        print(f"{ANSWER_METRICS[m].label}: {ANSWER_METRICS[m].method}.")
    print_judges(results.judges)
    return {
        "experiment": results.experiment.id,
        "rows": [
            {
                "name": r.name,
                "group": r.row.group_name,
                "state": r.state,
                "figures": r.figures,
                "gains": r.gains,
            }
            for r in results.rows
        ],
        "judges": [judge.to_json() for judge in results.judges],
    }


def show_experiment(engine: Engine, args: argparse.Namespace) -> Any:
    if args.experiment:
        return _print_results(engine.judges.results(engine.experiments.find(args.experiment).id))
    warn_of_damaged(engine, "experiments")
    listed = engine.experiments.list()
    for experiment in listed:
        states = list(engine.experiments.states(experiment.id).values())
        print(f"{experiment.id}  {experiment.name}  {states.count('done')} of {len(states)} rows done")
    return [{"id": e.id, "name": e.name, "created": e.created} for e in listed]


def print_config(engine: Engine, args: argparse.Namespace) -> Any:
    if args.experiment:
        spec = engine.experiments.find(args.experiment).settings
    else:
        spec = _read_preset(engine, args)
    print(format_yaml(spec), end="")
    return spec.to_json()


def compare_rows(engine: Engine, args: argparse.Namespace) -> Any:
    results = engine.experiments.results(engine.experiments.find(args.experiment).id)
    found = {m: results.compare(args.first, args.second, m) for m in results.metrics}
    table: list[list[Any]] = [["metric", args.first, args.second, "difference", "95 % interval", "questions"]]
    for metric, d in found.items():
        if d is not None:
            gain = f"x {d.gain:.3f}" if d.is_ratio else f"{d.gain:+.3f}"
            interval = f"{d.low:.3f} to {d.high:.3f}"
            table.append([ANSWER_METRICS[metric].label, d.base, d.value, gain, interval, d.count])
    print_table(table)
    return found


def write_csv(engine: Engine, args: argparse.Namespace) -> Any:
    text = engine.judges.results(engine.experiments.find(args.experiment).id).csv()
    if args.output:
        with atomic_write(args.output, "w") as f:
            f.write(text)
    else:
        print(text, end="")
    return {"csv": text}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise SpecError(f"{path} cannot be read: {e}.", "Give a file of UTF-8 text.") from e


# --- promotions


def add_promotion_verbs(commands: Any, add: AddVerb) -> None:
    """Adds `promote` and `rollback`."""
    p = add(
        commands,
        "promote",
        promote_mix,
        "Make a mix `production`, if it passes the gate of an experiment. The exit code is 0 where it "
        "passed, 3 where it failed, 4 where there are not enough questions, 5 where the gate is void because "
        "documents do not help the base, and 1 after an error.",
    )
    p.add_argument("mix", help="An adapter or a saved mix by id or name, a mix, or a row of the experiment.")
    p.add_argument("--against", required=True, metavar="EXPERIMENT", help="An id or a name.")
    p.add_argument("--dry-run", action="store_true", help="Only say what the gate decides.")
    add(commands, "rollback", roll_back, "Make the mix `production` again that was promoted before.")


def promote_mix(engine: Engine, args: argparse.Namespace) -> Any:
    experiment = engine.experiments.find(args.against)
    promotion = None
    if args.dry_run:
        decision = engine.promotions.decide(args.mix, experiment.id)
    else:
        decision, promotion = engine.promotions.promote(args.mix, experiment.id)
    for criterion in decision.criteria:
        print(f"{criterion.status:<21} {criterion.text}")
    print(decision.text)
    if promotion is not None:
        print(f"production is now {promotion.name!r} ({promotion.id}).")
        for note in promotion.notes:
            print(f"Not checked: {note}")
    value = {**decision.to_json(), "promotion": promotion.id if promotion else ""}
    return Outcome(value, EXIT_CODES[decision.status])


def roll_back(engine: Engine, args: argparse.Namespace) -> Any:
    before, now = engine.promotions.roll_back()
    print(f"{before.name!r} is taken back. ", end="")
    print(f"production is now {now.name!r}." if now else "Nothing is promoted now.")
    return {"taken_back": before.id, "production": now.id if now else ""}
