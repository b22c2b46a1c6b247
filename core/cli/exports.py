"""The terminal's verbs for what leaves the studio: `export`, and the group `exports`."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import time
from pathlib import Path
from typing import Any

from core.cli.common import REFRESH_SECONDS, AddVerb, ProgressBar, add_setting, read_mix, read_settings
from core.engine import Engine
from core.errors import InvalidName, StudioError
from core.spec.export import FORM_LABELS, GGUF_QUANTIZATIONS, ExportSpec
from core.spec.mix import Mix
from core.store.exports import Export
from core.store.files import ensure_space

FROM_MIX = ("weights", "tilt")  # settings that the mix gives
GGUF_OPTION = "--gguf-quantization"  # --quantization is that of the resident base, for every command


def add_command(commands: Any, add: AddVerb) -> None:
    """Adds the command `export`."""
    p = add(
        commands,
        "export",
        export,
        "Write an adapter or a mix as files for other tools, and check that they say the same.",
        needs_model=True,
    )
    p.add_argument(
        "mix",
        metavar="MIX",
        help='An adapter by id or name, or a mix: "domain=0.7,task=1". A bundle keeps weights of 0.',
    )
    for f in dataclasses.fields(ExportSpec):
        if f.name == "quantization":
            p.add_argument(
                GGUF_OPTION, dest="gguf_quantization", choices=GGUF_QUANTIZATIONS, help=f.metadata["help"]
            )
        elif f.name not in FROM_MIX:
            add_setting(p, f)
    p.add_argument("--out", type=Path, help="Also copy the files to this folder, which must not exist.")
    p.add_argument("--dry-run", action="store_true", help="Say what it would take; nothing is written.")


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `exports`."""
    add(group, "list", list_exports, "List exports, the newest first.")
    for name, verb, text, needs_model in (
        ("show", show_export, "Show the files of an export and its certificate.", False),
        ("resume", resume_export, "Continue an export that was interrupted, or check it again.", True),
        ("delete", delete_export, "Delete an export with its files.", False),
    ):
        p = add(group, name, verb, text, needs_model=needs_model)
        p.add_argument("export", help="Its id or its name.")
    p = add(group, "push", push_export, "Upload an export to the Hub, into a private repository.")
    p.add_argument("export", help="Its id or its name.")
    p.add_argument("repo", help='The repository, "owner/name"; a new one is created.')
    p.add_argument("--public", action="store_true", help="A new repository is public.")
    p.add_argument(
        "--although-failed", action="store_true", help="Also upload an export whose check has failed."
    )


def export(engine: Engine, args: argparse.Namespace) -> Any:
    engine.bases.current(wait=True)
    mix = read_mix(engine, args.mix)
    settings = read_settings(args, ExportSpec)
    settings.pop("quantization", None)  # of the base
    if args.gguf_quantization:
        settings["quantization"] = args.gguf_quantization
    spec = ExportSpec.of_mix(mix, engine.library.labels(), **settings)
    if spec.form == "bundle":
        zeros = {engine.library.find_adapter(a): 0.0 for a in _list_zeros(args.mix)}
        spec = dataclasses.replace(spec, weights={**zeros, **spec.weights})
    if args.out is not None and args.out.exists():
        raise InvalidName(f"{args.out} exists already.", "Name a folder that does not exist.")
    estimate = engine.exports.estimate(spec)
    print(estimate.text)
    if args.dry_run:
        return {"estimate": estimate}
    export_id = engine.exports.start(spec)
    made = _follow(engine, export_id)
    if args.out is not None:
        ensure_space(args.out.parent, made.bytes)
        shutil.copytree(engine.exports.folder(export_id), args.out)
        print(f"copied to {args.out}")
    return {"export": made, "folder": str(args.out or engine.exports.folder(export_id))}


def _list_zeros(text: str) -> list[str]:
    """The adapters of a mix that has been parsed whose weight is 0; `Mix` leaves them out."""
    parts = [part for part in re.split(r"[,+]", text) if part.strip() not in ("", "base")]
    return [re.split("[=@]", part)[0].strip() for part in parts if not Mix.parse(part).weights]


def list_exports(engine: Engine, args: argparse.Namespace) -> Any:
    found = engine.exports.list()
    for e in found:
        state = e.certificate.get("status", "not checked") if e.is_complete else "interrupted"
        print(f"{e.id:<40} {FORM_LABELS.get(e.form, e.form):<46} {e.bytes / 1e6:>10.1f} MB  {state}")
    return found


def show_export(engine: Engine, args: argparse.Namespace) -> Any:
    found = engine.exports.find(args.export)
    _print_export(engine, found)
    return found


def resume_export(engine: Engine, args: argparse.Namespace) -> Any:
    engine.bases.current(wait=True)
    export_id = engine.exports.find(args.export).id
    engine.exports.resume(export_id)
    return _follow(engine, export_id)


def push_export(engine: Engine, args: argparse.Namespace) -> Any:
    export_id = engine.exports.find(args.export).id
    engine.exports.push(export_id, args.repo, not args.public, args.although_failed)
    address = _follow_upload(engine, export_id)
    print(f"uploaded: {address}")
    return {"uploaded": export_id, "address": address}


def delete_export(engine: Engine, args: argparse.Namespace) -> Any:
    export_id = engine.exports.find(args.export).id
    engine.exports.delete(export_id)
    print(f"deleted {export_id}")
    return {"deleted": export_id}


def _follow(engine: Engine, export_id: str) -> Export:
    """Prints the progress until the work ends; returns the export.

    Raises:
        StudioError: the work failed.
    """
    bar = ProgressBar()
    while (status := engine.exports.status(export_id)) is not None and not status.has_ended:
        bar.show(min(status.share, 0.999), status.text)
        time.sleep(REFRESH_SECONDS)
    if status is not None and status.state != "done":
        raise status.error or StudioError(
            f"The export was {status.state}.", f"Continue with `exports resume {export_id}`."
        )
    bar.show(1.0, status.text if status else "Done")
    made = engine.exports.get(export_id)
    _print_export(engine, made)
    return made


def _follow_upload(engine: Engine, export_id: str) -> str:
    """Prints what is done until the upload ends; returns the address of the commit.

    Raises:
        StudioError: the upload failed.
    """
    shown = ""
    while not (status := engine.exports.uploads.wait(export_id, REFRESH_SECONDS)).has_ended:
        if status.text != shown:
            print(status.text, flush=True)
        shown = status.text
    if status.state != "done":
        raise status.error or StudioError(f"The upload was {status.state}.", "Start it again.")
    return status.address


def _print_export(engine: Engine, made: Export) -> None:
    from core.export.card import list_figures

    for file in made.files:
        print(f"  {file.name:<48} {file.bytes / 1e6:>10.1f} MB  sha256 {file.sha256[:16]}")
    for note in made.notes:
        print(f"- {note}")
    if not made.is_complete:
        print(f"not complete: continue with `exports resume {made.id}`")
    if found := made.certificate:
        print(f"certificate: {found['status']}. {found['reason']}".rstrip())
        for name, value in list_figures(found) if found["positions"] else ():
            print(f"  {name}: {value}")
    print(f"folder: {engine.exports.folder(made.id)}")
