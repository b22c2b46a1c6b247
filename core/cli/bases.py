"""The terminal's verbs over base models: `bases list`, `download`, `add`, `template` and `remove`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from core.cli.common import REFRESH_SECONDS, AddVerb, ProgressBar
from core.engine import Engine, base_files
from core.errors import BaseModelError
from core.gguf.model_stores import ModelFolders
from core.store.known_bases import KNOWN_BASES
from core.store.workspace import Workspace


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `bases`."""
    add(group, "list", list_bases, "List the base models on this machine.")
    known = ", ".join(f"{base.name} ({base.about.rstrip('.')})" for base in KNOWN_BASES.values())
    p = add(
        group,
        "download",
        download_base,
        f"Download a base model; continues a partial download. {known}.",
    )
    p.add_argument(
        "name", help=f'{" or ".join(KNOWN_BASES)}, or a Hub id, for example "Qwen/Qwen2.5-0.5B-Instruct".'
    )
    p = add(
        group,
        "add",
        download_base,
        "Convert a GGUF file or a model of Ollama into a base. A second time costs nothing.",
    )
    p.add_argument("name", metavar="FILE", help="A path that ends in .gguf, or a name from `bases list`.")
    p = add(
        group,
        "template",
        show_template,
        "Show how the chat template of a base differs from that of its family, and accept it.",
        needs_model=True,
    )
    p.add_argument("--accept", action="store_true", help="Use the base's own template from now on.")
    p = add(group, "remove", remove_base, "Move a base that was converted from a file to the trash.")
    p.add_argument("name", metavar="BASE", help="Its folder, its id or its name.")


def list_bases(engine: Engine, args: argparse.Namespace) -> Any:
    bases = engine.bases.list()
    for b in bases:
        label = f" ({b.label})" if b.label and b.label != b.name else ""
        print(f"{b.name + label:<60} {b.kind:<14} {b.bytes / 1e6:>10.1f} MB  {b.why or b.place}")
    for known in KNOWN_BASES.values():
        if engine.bases.needs_preparation(known.name):
            print(f"{known.name:<60} `bases download {known.name}`: {known.about}")
    return bases


def download_base(engine: Engine, args: argparse.Namespace) -> Any:
    """Downloads or converts, and prints the progress."""
    if known := KNOWN_BASES.get(args.name):
        print(f"{known.title}: {known.about}")
    bar = ProgressBar()
    engine.bases.download(args.name)
    while (state := engine.bases.download_state()) is not None and not state.over:
        share = state.done / state.total if state.total else 0.0
        size = f": {state.done / 1e6:.1f} of {state.total / 1e6:.1f} MB" if state.total > 1 else ""
        bar.show(min(share, 0.999), f"{state.text or state.name}{size}")
        time.sleep(REFRESH_SECONDS)
    download = engine.bases.wait_for_download()
    bar.show(1.0, f"{download.name}: {download.total / 1e6:.1f} MB")
    if download.base:
        print(f"Ready: --base {args.name}, or its folder {download.base}")
    return download


def show_template(engine: Engine, args: argparse.Namespace) -> Any:
    """Prints what is known about the template of the base, with a diff; accepts it with `--accept`."""
    base = engine.bases.current(wait=True)
    if base.error:
        raise BaseModelError(base.error)
    template = base.template
    print(template.text)
    for line in template.diff:
        print(f"    {line}")
    if template.differs and not base.chat_template and args.accept:
        engine.bases.accept_template(template.digest)
        base = engine.bases.current(wait=True)
    own = "the base's own" if base.chat_template else "the studio's plain one"
    print(f"Used: {own}.")
    if template.differs and not base.chat_template:
        print("`bases template --accept` uses the base's own from now on.")
    return {**dataclasses.asdict(template), "is_used": base.chat_template}


def remove_base(engine: Engine, args: argparse.Namespace) -> Any:
    item = engine.bases.remove(args.name)
    print(f"deleted {item.id}")
    return {"removed": item.id}


def prepare_base(workspace: Path, name: str, folders: ModelFolders) -> str:
    """What is loaded for a base. A file is downloaded and converted first; the log shows the progress."""
    if not base_files.is_source(name, folders):
        return name
    store = Workspace(workspace)
    if (folder := base_files.find_folder(store, name, folders)) is None:
        if known := KNOWN_BASES.get(name):
            print(f"{known.title}: {known.about}", file=sys.stderr)
        report = base_files.make_logging_report(name)
        folder = base_files.prepare(store, name, folders, report, lambda: False)
    return str(folder)
