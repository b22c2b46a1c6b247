"""The terminal's verb `space build`: a folder that can be pushed to a Hugging Face Space."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.cli.common import AddVerb
from core.errors import NotFound
from core.space.card import HARDWARE, SpaceSpec
from core.space.folder import build_space
from core.space.selection import Selection, choose_base, select
from core.store.workspace import KINDS, Workspace


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `space`."""
    help = "Write a folder with the studio, its requirements, and the adapters and mixes that it shows."
    p = add(group, "build", build, help, needs_engine=False, needs_workspace=True)
    p.add_argument("folder", type=Path, help="A folder that does not exist yet, or is empty.")
    p.add_argument(
        "--base", default="", help="embedded, smollm2-135m or a Hub id. Default: the base of the adapters."
    )
    p.add_argument(
        "--adapter",
        nargs="+",
        action="extend",
        default=[],
        metavar="ADAPTER",
        help="Adapters by id or name; those that they were trained on top of are added.",
    )
    p.add_argument(
        "--mix",
        nargs="+",
        action="extend",
        default=[],
        metavar="MIX",
        help="Saved mixes by id or name; their adapters are added.",
    )
    p.add_argument("--title", default=SpaceSpec.title, help=f"Default: {SpaceSpec.title}.")
    p.add_argument(
        "--hardware",
        choices=HARDWARE,
        default=SpaceSpec.hardware,
        help=f"What the Space suggests to its owner. Default: {SpaceSpec.hardware}.",
    )


def build(engine: Any, args: argparse.Namespace) -> Any:
    """Builds the folder, and prints what it holds and how it is pushed."""
    spec = SpaceSpec(args.title, args.hardware)
    workspace, selection = None, Selection()
    if args.adapter or args.mix:
        workspace = _open(args.workspace)
        selection = select(workspace, args.adapter, args.mix)
    base = choose_base(args.base, selection.adapters)
    built = build_space(args.folder, spec, base, selection, workspace)
    print(
        f"wrote {built.folder}: {built.files} files, {built.bytes / 1e6:.1f} MB, base {built.base}, "
        f"{len(built.adapters)} adapters, {len(built.mixes)} mixes"
    )
    for note in built.notes:
        print(f"note: {note}")
    print(
        "The folder holds the metadata and model cards of its adapters: all who see the Space can read them."
    )
    print(f"Push it: hf upload OWNER/NAME {built.folder} . --repo-type space")
    return {**asdict(built), "folder": str(built.folder)}


def _open(root: Path) -> Workspace:
    """The workspace; a mistyped folder is not created."""
    if not any((root / kind).is_dir() for kind in KINDS):
        raise NotFound(f"{str(root)!r} is not a workspace.", "Give its folder with --workspace.")
    return Workspace(root)
