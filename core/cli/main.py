"""The terminal: every verb of the engine, for people and (with --json) for programs.

Knows arguments and printing. All work is the engine's. With --json, the last line of standard output
is one JSON value; errors are {"error": ..., "fix": ...} with exit code 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.cli import bundles, demo
from core.cli import grids as grid_verbs
from core.cli.common import SAMPLE_PRINT_SECONDS, Bar, Verb, add_setting, follow, given, print_table
from core.engine import Engine
from core.errors import StudioError
from core.spec.mix import Mix, Sampling
from core.spec.presets import PRESETS, resolve
from core.spec.settings import SEED
from core.spec.training import KINDS, QUANTIZATIONS, Launch, TrainSpec
from core.store import grids
from core.store.run_order import MOVES
from core.train.signals import exit_on_sigterm

WORKSPACE_VARIABLE = "ADAPTER_STUDIO_WORKSPACE"


def default_workspace() -> Path:
    """The workspace of a person who names none: ADAPTER_STUDIO_WORKSPACE, or ./workspace."""
    return Path(os.environ.get(WORKSPACE_VARIABLE, "workspace"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # it reports an optional CPU kernel it does without
    args = parser().parse_args(argv)
    restore_sigterm = exit_on_sigterm()
    try:
        if args.verb in ALONE:
            value = args.verb(None, args)
        else:
            with Engine(
                args.workspace,
                args.base,
                _quantization(args),
                load=args.model and not getattr(args, "launcher", ""),
            ) as engine:
                value = args.verb(engine, args)
    except StudioError as e:
        if args.json:
            print(json.dumps({"error": e.what, "fix": e.fix}, ensure_ascii=False))
        else:
            print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        restore_sigterm()
    if args.json:
        print(json.dumps(value, ensure_ascii=False, default=_plain))
    return 0


def _quantization(args: argparse.Namespace) -> str:
    """As typed; where nothing was, as a preset that was typed asks for."""
    typed, preset = str(args.quantization), getattr(args, "preset", None)
    return (PRESETS[preset].quantization if preset and typed == "auto" else "") or typed


def parser() -> argparse.ArgumentParser:
    """The whole command line; the help of training settings is the sentence of the spec."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--workspace",
        type=Path,
        default=default_workspace(),
        help=f"Where everything is kept (or {WORKSPACE_VARIABLE}).",
    )
    common.add_argument("--base", default="embedded", help='"embedded", a local folder, or a Hub id.')
    common.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="auto",
        help="4-bit nf4, 8-bit int8, none, or what suits the device.",
    )
    common.add_argument("--json", action="store_true", help="Print one JSON value as the last line.")
    alone = argparse.ArgumentParser(add_help=False)
    alone.add_argument(
        "--base", default="", help="In the place of the bundle's: a folder or a Hub id with the same weights."
    )
    alone.add_argument(
        "--quantization", choices=QUANTIZATIONS, default="", help="In the place of the bundle's."
    )
    alone.add_argument("--json", action="store_true", help="Print one JSON value as the last line.")
    top = argparse.ArgumentParser(prog="python -m core", description="Adapter Studio in the terminal.")
    verbs = top.add_subparsers(required=True, metavar="COMMAND")

    def add(under: Any, name: str, verb: Verb | None, help: str) -> argparse.ArgumentParser:
        made = under.add_parser(
            name, help=help, description=help, parents=[alone if verb in ALONE else common] if verb else []
        )
        if verb:
            made.set_defaults(verb=verb, model=verb in NEED_MODEL)
        return made  # type: ignore[no-any-return]

    def group(name: str, help: str) -> Any:
        return add(verbs, name, None, help).add_subparsers(required=True, metavar="VERB")

    data = group("data", "Datasets.")
    p = add(data, "add", _data_add, "Import files or a folder as a dataset.")
    p.add_argument("paths", nargs="+", type=Path)
    p.add_argument("--name", default="")
    p.add_argument("--kind", choices=KINDS)
    p.add_argument(
        "--role",
        action="append",
        default=[],
        metavar="ROLE=COLUMN",
        help="Correct a guessed column, e.g. question=q.",
    )
    p.add_argument("--encoding", default="utf-8")
    p.add_argument("--seed", type=int, default=SEED)
    add(data, "list", _data_list, "List datasets.")

    train = group("train", "Train an adapter.")
    for kind in KINDS:
        p = add(train, kind, _train, f"Train a {kind} adapter.")
        p.set_defaults(kind=kind)
        p.add_argument(
            "--preset",
            choices=tuple(PRESETS),
            help='Default: "embedded" on the embedded base, else "standard".',
        )
        for f in dataclasses.fields(TrainSpec):
            if f.name != "kind":
                add_setting(p, f)
        _add_launch(p)

    bases = group("bases", "Base models.")
    add(bases, "list", _bases_list, "List the base models on this machine.")
    add(
        bases,
        "download",
        _bases_download,
        "Download a base model from the Hub; goes on where an earlier one was cut off.",
    ).add_argument("name", help="A Hub id.")

    adapters = group("adapters", "The library.")
    add(adapters, "list", _adapters_list, "List adapters.")
    for name, verb, help in (
        ("verify", _adapters_verify, "Check an adapter's files."),
        ("remove", _adapters_remove, "Delete an adapter."),
    ):
        add(adapters, name, verb, help).add_argument("adapter")

    p = add(verbs, "generate", _generate, "Let mixes answer a prompt, all in one batch.")
    p.add_argument("--prompt", required=True)
    p.add_argument("--raw", action="store_true", help="Continue the text instead of answering it as a chat.")
    _add_mixes(p)
    for f in dataclasses.fields(Sampling):
        add_setting(p, f)

    p = add(verbs, "evaluate", _evaluate, "Measure mixes on a split.")
    p.add_argument("--dataset", required=True)
    p.add_argument("--split", default="test", choices=("train", "val", "test", "all"))
    p.add_argument("--limit", type=int, default=0)
    p.add_argument("--no-general", action="store_true", help="Do not measure general perplexity.")
    _add_mixes(p)

    add(verbs, "demo", _demo, "Run the main job on the sample data: import, train, compare, evaluate.")

    run = group("runs", "Training runs.")
    add(run, "list", _runs_list, "List runs.")
    add(run, "show", _runs_show, "Say where a run stands, what that means and what to do.").add_argument(
        "run"
    )
    add(
        run,
        "pause",
        _runs_pause,
        "Let a running run save and give the model back, also one in another process.",
    ).add_argument("run")
    add(run, "follow", _runs_follow, "Show a run's events until it ends.").add_argument("run")
    add(run, "resume", _runs_resume, "Go on with an interrupted or stopped run.").add_argument("run")
    add(run, "stop", _runs_stop, "Ask a run to end after its step and keep what it learned.").add_argument(
        "run"
    )
    p = add(run, "join", _runs_join, "Bring this machine's processes to a run that another machine started.")
    p.add_argument("run")
    _add_launch(p)
    add(
        run,
        "again",
        _runs_again,
        "Queue the runs again that were waiting when their studio ended, and follow them.",
    )
    p = add(run, "move", _runs_move, "Change the place of a queued run; the studio that holds it heeds it.")
    p.add_argument("run")
    p.add_argument("to", choices=MOVES)
    p = add(run, "cancel", _runs_cancel, "Take a run out of the queue before it begins.")
    p.add_argument("run")
    p.add_argument("--together", action="store_true", help="Also those that need what it would have learned.")
    p = add(run, "compare", _runs_compare, "Figures and settings of two to eight runs side by side.")
    p.add_argument("runs", nargs="+", metavar="RUN")
    p.add_argument("--all", action="store_true", help="Also the settings that do not differ.")

    grid_verbs.add_verbs(
        group("grid", "One training description with some settings varied, every combination a run."), add
    )
    bundles.add_verbs(group("bundle", "Runs that are trained on another machine."), add)
    return top


def _add_launch(p: argparse.ArgumentParser) -> None:
    """The options that start several processes."""
    for f in dataclasses.fields(Launch):
        add_setting(p, f)


def _launch(args: argparse.Namespace) -> Launch | None:
    asked = given(args, Launch)
    return Launch(**asked) if asked else None


def _add_mixes(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--mix",
        action="append",
        metavar="MIX",
        help='Adapter ids or names with weights: "dom=0.7,task=1"; "" is the base.',
    )


def _mixes(engine: Engine, args: argparse.Namespace) -> list[Mix]:
    """The mixes that were typed, names resolved to ids; the default ones if none were."""
    if not args.mix:
        return engine.library.default_mixes()
    found = []
    for text in args.mix:
        raw = Mix.parse(text)
        ids = {a: engine.library.find_adapter(a) for a in raw.weights}
        found.append(
            Mix(
                name=text or "base",
                weights={ids[a]: w for a, w in raw.weights.items()},
                tilt={ids[a]: t for a, t in raw.tilt.items()},
            )
        )
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def _data_add(engine: Engine, args: argparse.Namespace) -> Any:
    roles = dict(r.split("=", 1) for r in args.role if "=" in r) or None
    made = engine.datasets.import_files(
        args.paths, args.name or args.paths[0].stem, args.kind, roles, args.seed, args.encoding
    )
    print(f"{made.id}: {made.rows} {made.kind} rows, {made.splits}")
    return made


def _data_list(engine: Engine, args: argparse.Namespace) -> Any:
    for d in engine.datasets.list():
        print(f"{d.id:<40} {d.kind:<7} {d.rows:>8} rows  {d.name}")
    return engine.datasets.list()


def _bases_list(engine: Engine, args: argparse.Namespace) -> Any:
    offers = engine.bases.list()
    for o in offers:
        print(f"{o.name:<60} {o.kind:<14} {o.bytes / 1e6:>10.1f} MB  {o.why or o.place}")
    return offers


def _bases_download(engine: Engine, args: argparse.Namespace) -> Any:
    bar = Bar()
    engine.bases.download(args.name)
    while (at := engine.bases.download_state()) is not None and not at.over:
        bar.show(
            at.done / at.total if at.total else 0.0,
            f"{at.name}: {at.done / 1e6:.1f} of {at.total / 1e6:.1f} MB",
        )
        time.sleep(SAMPLE_PRINT_SECONDS)
    ended = engine.bases.wait_for_download()
    bar.show(1.0, f"{ended.name}: {ended.total / 1e6:.1f} MB")
    return ended


def _train(engine: Engine, args: argparse.Namespace) -> Any:
    preset = args.preset or ("embedded" if args.base == "embedded" else "standard")
    changes = given(args, TrainSpec)
    changes.setdefault("name", f"{args.kind} adapter")
    if "stack_on" in changes:
        changes["stack_on"] = engine.library.find_adapter(changes["stack_on"])
    run_id = engine.runs.start(
        resolve(args.kind, preset, {k: v for k, v in changes.items() if k != "kind"}), _launch(args)
    )
    return follow(engine, run_id)


def _adapters_list(engine: Engine, args: argparse.Namespace) -> Any:
    for a in engine.library.adapters():
        print(f"{a.id:<40} {a.kind:<7} rank {a.rank:<4} on {a.base}  {a.name}")
    return engine.library.adapters()


def _adapters_verify(engine: Engine, args: argparse.Namespace) -> Any:
    checked = engine.library.verify(engine.library.find_adapter(args.adapter))
    print("\n".join(checked))
    return {"checked": checked}


def _adapters_remove(engine: Engine, args: argparse.Namespace) -> Any:
    adapter_id = engine.library.find_adapter(args.adapter)
    engine.library.delete("adapters", adapter_id)
    print(f"removed {adapter_id}")
    return {"removed": adapter_id}


def _generate(engine: Engine, args: argparse.Namespace) -> Any:
    engine.bases.current(wait=True)
    frame = engine.chat.stream(
        args.prompt, _mixes(engine, args), Sampling(**given(args, Sampling)), chat=not args.raw
    ).last()
    for c in frame.columns:
        print(f"[{c.stamp['mix']}] {c.text}  ({c.tokens} tokens, {c.tokens / max(c.seconds, 1e-9):.0f}/s)")
    return frame.columns


def _evaluate(engine: Engine, args: argparse.Namespace) -> Any:
    engine.bases.current(wait=True)
    last = engine.evaluation.measure(
        _mixes(engine, args), args.dataset, args.split, args.limit, general=not args.no_general
    ).last()
    report = engine.evaluation.report(last.report)
    print(engine.evaluation.report_csv(report.id).read_text(encoding="utf-8"), end="")
    return report


def _demo(engine: Engine, args: argparse.Namespace) -> Any:
    bar, moment = Bar(), None
    for moment in demo.run(engine):
        bar.show(moment.share, moment.text)
        for name, answer in moment.answers.items():
            bar.line(f"  {name:<22} {answer}")
    assert moment is not None and moment.result is not None
    rows = moment.result["mixes"]
    names = [n for n in demo.FIGURES if any(n in r for r in rows.values())]
    print("\n" + " " * 22 + "".join(f"{n.replace('_', ' '):>21}" for n in names))
    for name, row in rows.items():
        print(f"{name:<22}" + "".join(f"{row[n]:>21.3f}" for n in names))
    print(f"\n{moment.result['seconds']:.0f} seconds in all.")
    return moment.result


def _runs_list(engine: Engine, args: argparse.Namespace) -> Any:
    for r in engine.runs.list():
        print(
            f"{r.id:<40} {r.kind:<7} {r.status.value:<12} {r.step}/{r.total_steps}  {r.name}{'  (resumable)' if r.resumable else ''}"
        )
    for status in sorted({r.status for r in engine.runs.list()}, key=lambda s: s.value):
        print(f"{status.value}: {status.meaning} {status.next_step}")
    return engine.runs.list()


def _runs_show(engine: Engine, args: argparse.Namespace) -> Any:
    r = engine.runs.get(args.run)
    for line in (
        f"{r.name}: {r.status.value}, step {r.step} of {r.total_steps}",
        r.error,
        r.status.meaning,
        r.status.next_step,
    ):
        if line:
            print(line)
    return {**dataclasses.asdict(r), "meaning": r.status.meaning, "next_step": r.status.next_step}


def _runs_pause(engine: Engine, args: argparse.Namespace) -> Any:
    engine.runs.pause(args.run)
    return engine.runs.get(args.run)


def _runs_follow(engine: Engine, args: argparse.Namespace) -> Any:
    return follow(engine, args.run)


def _runs_resume(engine: Engine, args: argparse.Namespace) -> Any:
    engine.runs.resume(args.run)
    return follow(engine, args.run)


def _runs_stop(engine: Engine, args: argparse.Namespace) -> Any:
    engine.runs.stop(args.run)
    return follow(engine, args.run)


def _runs_join(engine: Engine, args: argparse.Namespace) -> Any:
    engine.runs.join(args.run, _launch(args) or Launch())
    return engine.runs.get(args.run)


def _runs_again(engine: Engine, args: argparse.Namespace) -> Any:
    return [follow(engine, run_id) for run_id in engine.runs.requeue()]


def _runs_move(engine: Engine, args: argparse.Namespace) -> Any:
    engine.queue.move(args.run, args.to)
    line = [w for w in engine.queue.list() if not w.leaving]
    for i, w in enumerate(line, 1):
        print(f"{i:>3}  {w.run.id:<40} {w.run.name}")
    return {"queue": [w.run.id for w in line]}


def _runs_cancel(engine: Engine, args: argparse.Namespace) -> Any:
    gone = engine.queue.cancel(args.run, args.together)
    print("\n".join(f"{run_id} will not begin" for run_id in gone))
    return {"cancelled": gone}


def _runs_compare(engine: Engine, args: argparse.Namespace) -> Any:
    found = engine.runs.compare(args.runs)
    chosen = [s for s in found.settings if args.all or s.is_varied]
    said = [
        {
            "run": r.id,
            "name": r.name,
            "status": r.status.value,
            "final_loss": h.final and h.final.loss,
            "best_loss": h.best and h.best.loss,
            "seconds": h.seconds,
        }
        for r, h in zip(found.runs, found.histories, strict=True)
    ]
    figures = [[name.replace("_", " ").capitalize(), *[s[name] for s in said]] for name in said[0]]
    print_table([*figures, *[[s.label, *[grids.format_value(v) for v in s.values]] for s in chosen]])
    return {"runs": said, "settings": {s.name: s.values for s in chosen}}


# Verbs that load the base model; the others answer without it.
NEED_MODEL = frozenset({_train, _generate, _evaluate, _runs_resume, _runs_again, grid_verbs.start, _demo})
ALONE = frozenset({bundles.run})  # it opens an engine of its own, on what it unpacked
