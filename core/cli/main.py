"""The terminal: `python -m core`. Every verb calls the engine, as the page does; --json is for programs.

With --json, the last line of standard output is one JSON value. An error is {"error": ..., "fix": ...} with
exit code 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.cli import (
    adapter_imports,
    answers,
    bases,
    bundles,
    calibration,
    experiments,
    exports,
    grids,
    inspections,
    judges,
    keys,
    library,
    mixes,
    notebook,
    reports,
    retrieval,
    runs,
    serve,
    space,
    splits,
    workspace,
)
from core.cli.bases import prepare_base
from core.cli.common import Outcome, Verb
from core.engine import Engine
from core.errors import StudioError
from core.gguf.model_stores import ModelFolders
from core.spec.presets import PRESETS
from core.spec.training import QUANTIZATIONS
from core.store.adapters import Adapter
from core.store.known_bases import KNOWN_BASES
from core.store.redaction import protect_logs
from core.store.runs import Run
from core.train.signals import exit_on_sigterm

WORKSPACE_VARIABLE = "ADAPTER_STUDIO_WORKSPACE"
JSON_HELP = "Print one JSON value as the last line."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    # bitsandbytes warns about an optional CPU kernel.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for name in ("resident_base", "base_files"):  # downloading, converting and loading take up to minutes
        logging.getLogger(f"core.engine.{name}").setLevel(logging.INFO)
    args = build_parser().parse_args(argv)
    restore_sigterm, restore_logs = exit_on_sigterm(), protect_logs()
    try:
        value = _run_verb(args)
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
        restore_logs()
    code = 0
    if isinstance(value, Outcome):
        value, code = value.value, value.exit_code
    if args.json:
        print(json.dumps(value, ensure_ascii=False, default=_to_json))
    return code


def _run_verb(args: argparse.Namespace) -> Any:
    """Runs the verb, with an engine if it needs one; returns its value."""
    if not args.needs_engine:
        return args.verb(None, args)
    folders = ModelFolders.find(os.environ)
    if args.needs_model or getattr(args, "launcher", ""):  # processes of a launcher need the folder, too
        args.base = prepare_base(args.workspace, args.base, folders)
    # Processes of their own, which a launcher starts, load the base themselves.
    load = args.needs_model and not getattr(args, "launcher", "")
    quantization = _choose_quantization(args)
    answers = getattr(args, "answers", "exact")
    with Engine(
        args.workspace, args.base, quantization, load=load, folders=folders, answers=answers
    ) as engine:
        engine.experiments.read_variable = os.environ.get
        return args.verb(engine, args)


def _choose_quantization(args: argparse.Namespace) -> str:
    """The quantization that was given; otherwise that of the training preset that was given."""
    quantization, preset = str(args.quantization), PRESETS.get(getattr(args, "preset", None) or "")
    if preset and quantization == "auto":
        return preset.quantization or quantization
    return quantization


def _to_json(value: Any) -> Any:
    """A value that `json` cannot write by itself; `json` calls this again for the values inside."""
    if isinstance(value, Run):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        # Version 0.1.0 had a key of its own for why an adapter cannot be mixed.
        return {**values, "unmixable": value.alone} if isinstance(value, Adapter) else values
    return str(value)


# --- the command line


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. The help of a setting is the sentence of its field."""
    top = argparse.ArgumentParser(prog="python -m core", description="Adapter Studio in the terminal.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add_group(name: str, help: str) -> Any:
        group = commands.add_parser(name, help=help, description=help)
        return group.add_subparsers(required=True, metavar="VERB")

    data = add_group("data", "Datasets.")
    library.add_data_verbs(data, _add_verb)
    inspections.add_verbs(data, _add_verb)
    splits.add_verbs(data, _add_verb)
    runs.add_train_verbs(add_group("train", "Train an adapter."), _add_verb)
    bases.add_verbs(add_group("bases", "Base models."), _add_verb)
    adapters = add_group("adapters", "The library of adapters.")
    library.add_adapter_verbs(adapters, _add_verb)
    adapter_imports.add_verbs(adapters, _add_verb)
    calibration.add_verbs(adapters, _add_verb)
    library.add_library_verbs(add_group("library", "All kinds of items, damaged ones too."), _add_verb)
    mixes.add_verbs(commands, _add_verb)
    retrieval.add_verbs(commands, _add_verb)
    answers.add_verbs(commands, _add_verb)
    exports.add_command(commands, _add_verb)
    serve.add_command(commands, _add_verb)
    exports.add_verbs(add_group("exports", "What was exported, and what the checks found."), _add_verb)
    runs.add_verbs(add_group("runs", "Training runs."), _add_verb)
    grids.add_verbs(
        add_group("grid", "Grids: one set of training settings with some varied, one run per combination."),
        _add_verb,
    )
    experiment = add_group(
        "experiment", "Experiments: mixes and documents on the same questions, with intervals."
    )
    experiments.add_verbs(experiment, _add_verb)
    judges.add_verbs(experiment, _add_verb)
    experiments.add_promotion_verbs(commands, _add_verb)
    reports.add_verbs(add_group("report", "Reports of experiments, and repeating them."), _add_verb)
    bundles.add_verbs(add_group("bundle", "Runs that another machine trains."), _add_verb)
    notebook.add_command(commands, _add_verb)
    workspace.add_workspace_verbs(
        add_group("workspace", "Back up a whole workspace, and move it to another machine."), _add_verb
    )
    space.add_verbs(add_group("space", "The studio as a Hugging Face Space."), _add_verb)
    keys.add_verbs(add_group("keys", "API keys, with which other programs sign in."), _add_verb)
    workspace.add_trash_verbs(add_group("trash", "Deleted items."), _add_verb)
    return top


def _add_verb(
    group: Any,
    name: str,
    verb: Verb,
    help: str,
    *,
    needs_model: bool = False,
    needs_engine: bool = True,
    needs_workspace: bool = False,
) -> argparse.ArgumentParser:
    """Adds a verb; see `core.cli.common.AddVerb`."""
    p: argparse.ArgumentParser = group.add_parser(name, help=help, description=help)
    p.set_defaults(verb=verb, needs_model=needs_model, needs_engine=needs_engine)
    if needs_engine or needs_workspace:
        _add_workspace_option(p)
    if needs_engine:
        _add_engine_options(p)
    p.add_argument("--json", action="store_true", help=JSON_HELP)
    return p


def _add_workspace_option(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--workspace",
        type=Path,
        default=Path(os.environ.get(WORKSPACE_VARIABLE, "workspace")),
        help=f"Folder of datasets, runs, adapters and mixes. Default: {WORKSPACE_VARIABLE}, or ./workspace.",
    )


def _add_engine_options(p: argparse.ArgumentParser) -> None:
    """The options of every verb that opens an engine."""
    p.add_argument(
        "--base",
        default="embedded",
        help=f'Base model: "embedded", {" or ".join(KNOWN_BASES)}, a local folder, a GGUF file, a model of '
        "Ollama, or a Hub id.",
    )
    p.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="auto",
        help="How the base is loaded: nf4 (4 bits), int8 (8 bits), none, or auto, which suits the device.",
    )
