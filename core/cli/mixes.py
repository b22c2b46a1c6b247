"""The terminal's verbs over mixes: `generate`, `evaluate` and `demo`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from typing import TYPE_CHECKING, Any

from core.cli import demo, retrieval
from core.cli.common import AddVerb, ProgressBar, add_setting, read_mix, read_settings
from core.data.samples import FOLDERS, find_samples
from core.engine import Engine
from core.engine.gates import describe_decisions, read_decisions
from core.errors import SpecError
from core.spec.harness import HarnessSettings
from core.spec.mix import Mix, Sampling
from core.spec.settings import SEED

if TYPE_CHECKING:
    from core.model.generate import Column


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the three verbs."""
    p = add(group, "generate", generate, "Answer a prompt with several mixes in one batch.", needs_model=True)
    p.add_argument("--prompt", required=True)
    p.add_argument("--raw", action="store_true", help="Continue the prompt as text, without a chat template.")
    _add_mixes(p)
    retrieval.add_documents_option(p)
    for f in dataclasses.fields(Sampling):
        add_setting(p, f)

    help = "Measure mixes on a split of a dataset, or on tasks of EleutherAI's lm-evaluation-harness."
    p = add(group, "evaluate", evaluate, help, needs_model=True)
    p.add_argument("--dataset", help="Id of the dataset.")
    p.add_argument("--split", default="test", choices=("train", "val", "test", "all"))
    p.add_argument("--limit", type=int, default=0, help="At most this many rows; 0 means all.")
    p.add_argument(
        "--no-general", action="store_true", help="Do not measure perplexity on general text as well."
    )
    p.add_argument(
        "--max-new-tokens",
        type=int,
        default=0,
        help="Longest answer, in tokens; 0 follows the longest answer of the data.",
    )
    _add_harness_options(p)
    _add_mixes(p)

    p = add(
        group,
        "demo",
        run_demo,
        "Run the main job on the sample data: import, train, compare, evaluate.",
        needs_model=True,
    )
    p.add_argument(
        "--sample",
        choices=tuple(FOLDERS),
        default="station",
        help="The sample data: an invented research station, or a museum in real English.",
    )
    p.add_argument("--seed", type=int, default=SEED, help="Seed of the training runs.")


def _add_harness_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--harness",
        metavar="TASKS",
        help="Instead of a dataset: tasks of the lm-evaluation-harness, separated by commas, such as "
        'arc_easy. --limit counts the rows of each task. Needs `pip install "adapter-studio[harness]"`.',
    )
    for f in dataclasses.fields(HarnessSettings):
        if f.name not in ("tasks", "limit", "max_new_tokens"):
            add_setting(p, f)


def _add_mixes(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--mix",
        action="append",
        metavar="MIX",
        help='Adapter ids or names with weights, "domain=0.7,task=1"; "domain=auto,task=1" lets the weight '
        'of domain follow the prompt; "" is the base. Once per mix.',
    )


def _read_mixes(engine: Engine, args: argparse.Namespace) -> list[Mix]:
    """The mixes that were given, with names resolved to ids; otherwise the default mixes."""
    if not args.mix:
        return engine.library.default_mixes()
    return [read_mix(engine, text, text or "base") for text in args.mix]


def generate(engine: Engine, args: argparse.Namespace) -> Any:
    engine.bases.current(wait=True)
    mixes, sampling = _read_mixes(engine, args), Sampling(**read_settings(args, Sampling))
    passages = [retrieval.find_passages(engine, args.documents, args.prompt)] if args.documents else None
    frame = engine.chat.stream(
        args.prompt, mixes, sampling, chat=not args.raw, passages=passages and passages * len(mixes)
    ).last()
    for prompt in frame.prompts[:1]:
        retrieval.print_prompt(prompt)
    for c in frame.columns:
        thought = f", {c.thought_tokens} of them a thought" if c.thought else ""
        rate = c.tokens / max(c.seconds, 1e-9)
        print(f"[{c.stamp['mix']}] {c.text}  ({c.tokens} tokens{thought}, {rate:.0f}/s)")
        for line in describe_decisions(read_decisions(c.stamp), engine.library.labels()).values():
            print(f"    {line}")
    return [_column_to_json(c) for c in frame.columns]


def _column_to_json(column: Column) -> dict[str, Any]:
    """A column under the keys of --json, in which the changes of its mix are called "turns"."""
    values = dataclasses.asdict(column)
    return {("turns" if k == "mix_changes" else k): v for k, v in values.items()}


def evaluate(engine: Engine, args: argparse.Namespace) -> Any:
    if bool(args.dataset) == bool(args.harness):
        raise SpecError(
            "Exactly one of --dataset and --harness must be given.", "For example --harness arc_easy."
        )
    engine.bases.current(wait=True)
    if args.harness:
        return _run_harness(engine, args)
    progress = engine.evaluation.measure(
        _read_mixes(engine, args),
        args.dataset,
        args.split,
        args.limit,
        general=not args.no_general,
        max_new_tokens=args.max_new_tokens,
    ).last()
    report = engine.evaluation.report(progress.report)
    for note in report.conditions.notes:
        print(f"Row {note.row} ({note.text!r}) was {note.effect}: {note.reason}.", file=sys.stderr)
    print(engine.evaluation.report_csv(report.id).read_text(encoding="utf-8"), end="")
    return report


def _run_harness(engine: Engine, args: argparse.Namespace) -> Any:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default of a task
    bar = ProgressBar()
    tasks = tuple(t.strip() for t in args.harness.split(",") if t.strip())
    settings = HarnessSettings(**{**read_settings(args, HarnessSettings), "tasks": tasks})
    report = engine.harness.measure(
        _read_mixes(engine, args), settings, lambda p: bar.show(p.done / max(p.total, 1), p.text)
    )
    print(engine.evaluation.report_csv(report.id).read_text(encoding="utf-8"), end="")
    print(f"The harness's own results: {engine.workspace.path('reports', report.id, 'harness.json')}")
    return report


def run_demo(engine: Engine, args: argparse.Namespace) -> Any:
    bar, progress = ProgressBar(), None
    for progress in demo.run_demo(engine, find_samples(args.sample), args.seed):
        bar.show(progress.share, progress.text)
        for name, answer in progress.answers.items():
            bar.print_line(f"  {name:<22} {answer}")
    assert progress is not None and progress.result is not None
    rows = progress.result["mixes"]
    figures = [n for n in demo.FIGURES if any(n in row for row in rows.values())]
    print("\n" + " " * 22 + "".join(f"{n.replace('_', ' '):>21}" for n in figures))
    for name, row in rows.items():
        print(f"{name:<22}" + "".join(f"{row[n]:>21.3f}" for n in figures))
    print(f"\n{progress.result['seconds']:.0f} seconds in total.")
    return progress.result
