"""Bases from files: finds the GGUF file that a name means, and converts it once into a folder.

    "smollm2-135m" ─ package index ─┐
    "qwen2.5:0.5b-instruct" (Ollama)┼─> GGUF file ─ sha256, core.gguf.conversion (a process) ─> bases/<id>
    a path of a .gguf file ─────────┘

The folder is keyed by the sha256 of the file, and appears complete or not at all. Everything that loads a
base then sees an ordinary folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from core.data.child_process import build_child_command
from core.errors import BaseModelError, Cancelled, DiskFull, StorageError, StudioError
from core.gguf import model_stores
from core.gguf.architectures import explain_refusal
from core.gguf.conversion import Conversion, Request, status_of
from core.gguf.header import GgufSummary, read_summary
from core.gguf.model_stores import ModelFolders
from core.progress import LineClock
from core.store import base_models, converted_bases, package_index
from core.store.converted_bases import KIND, RECORD, ConvertedBase
from core.store.files import check_regular_file
from core.store.known_bases import KNOWN_BASES, KnownBase
from core.store.record_types import check_type
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)
SUFFIX = ".gguf"
HASH_BLOCK = 4 << 20

Report = Callable[[str, int, int], None]  # what is done, bytes so far, bytes in all
PollStop = Callable[[], bool]


@dataclass(frozen=True)
class FileSource:
    """A GGUF file and where it comes from.

    Attributes:
        name: the name to show. source: as `ConvertedBase.source`.
        path: of the file.
        sha256: that the file must have; "" where it is not known.
        template, stops: settings that a store keeps beside the file.
        notes, licence: as in `ConvertedBase`.
    """

    name: str
    source: str
    path: Path
    sha256: str = ""
    template: str = ""
    stops: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    licence: str = ""


def is_source(name: str, folders: ModelFolders) -> bool:
    """Whether a name means a file that is converted: a known download, a GGUF file, or a model of Ollama."""
    if name in KNOWN_BASES or name.lower().endswith(SUFFIX):
        return True
    if not name or name == "embedded" or base_models.HUB_ID.fullmatch(name):
        return False
    if Path(name).expanduser().exists():
        return False
    return model_stores.find_model(folders, name) is not None


def find_folder(workspace: Workspace, name: str, folders: ModelFolders) -> Path | None:
    """The folder that a source was converted into, without reading the source; None before that."""
    bases = converted_bases.load_all(workspace)
    found: ConvertedBase | None
    if name in KNOWN_BASES:
        found = converted_bases.find_by_digest(bases, KNOWN_BASES[name].sha256)
    elif name.lower().endswith(SUFFIX):
        found = converted_bases.find_by_file(bases, Path(name).expanduser())
    else:
        model = model_stores.find_model(folders, name)
        found = converted_bases.find_by_digest(bases, model.sha256) if model else None
    return _check_folder(workspace, found)


def _check_folder(workspace: Workspace, base: ConvertedBase | None) -> Path | None:
    """The folder of a base, if its files are complete."""
    if base is None:
        return None
    folder = converted_bases.folder_of(workspace, base)
    return None if base_models.describe_defect(folder) else folder


def prepare(
    workspace: Workspace, name: str, folders: ModelFolders, report: Report, poll_stop: PollStop
) -> Path:
    """Downloads and converts what a name means, unless that is done.

    Args:
        name: for which `is_source` holds.
        report: receives the progress often.
        poll_stop: returns True to stop.

    Returns:
        the folder that transformers loads.

    Raises:
        BaseModelError: the file is missing, damaged or of a kind that cannot be converted.
        StorageError, DiskFull: the workspace or the folder of downloads cannot be written. Cancelled
    """
    if folder := find_folder(workspace, name, folders):
        return folder
    source = _find_source(name, folders, report, poll_stop)
    check_regular_file(source.path)
    architecture = read_summary(source.path).architecture  # before gigabytes are read
    if architecture and (error := explain_refusal(architecture, source.path.name)):
        raise error
    try:
        with open(source.path, "rb") as file:
            status = status_of(file)
            sha256 = _compute_digest(file, source, status[2], report, poll_stop)
            if status_of(file) != status:
                raise _make_change_error(source)
    except OSError as e:
        raise BaseModelError(
            f"{source.path.name!r} cannot be read: {e.strerror or e}.", "Check its permissions."
        ) from e
    known = converted_bases.find_by_digest(converted_bases.load_all(workspace), sha256)
    if folder := _check_folder(workspace, known):
        return folder
    return _convert(workspace, source, sha256, status, report, poll_stop)


def _find_source(name: str, folders: ModelFolders, report: Report, poll_stop: PollStop) -> FileSource:
    if known := KNOWN_BASES.get(name):
        return _download(known, folders, report, poll_stop)
    if name.lower().endswith(SUFFIX):
        path = Path(name).expanduser()
        if not path.exists():
            raise BaseModelError(f"The file {name!r} does not exist.", "Check the path.")
        path = path.resolve()
        return FileSource(path.name[: -len(SUFFIX)], str(path), path)
    model = model_stores.find_model(folders, name)
    if model is None:
        raise BaseModelError(f"Ollama has no model {name!r} on this machine.", "See `bases list`.")
    if model.why:
        raise BaseModelError(f"{model.name!r} cannot be used. {model.why}")
    template, stops = model_stores.read_settings(model)
    return FileSource(
        model.label, f"{model.name} (Ollama)", model.path, model.sha256, template, stops, list(model.notes)
    )


def _download(known: KnownBase, folders: ModelFolders, report: Report, poll_stop: PollStop) -> FileSource:
    def show(done: int, total: int) -> None:
        report(f"Downloading {known.title}", done, total)

    path = package_index.fetch(known, folders.downloads, show, poll_stop)
    return FileSource(known.title, known.source, path, known.sha256, licence=known.licence)


def _compute_digest(
    file: IO[bytes], source: FileSource, size: int, report: Report, poll_stop: PollStop
) -> str:
    """The sha256 of the file.

    Raises:
        BaseModelError: it is another one than the source states. Cancelled
    """
    sha, done = hashlib.sha256(), 0
    while block := file.read(HASH_BLOCK):
        if poll_stop():
            raise Cancelled("The conversion was stopped; nothing of it is left.")
        sha.update(block)
        done += len(block)
        report(f"Reading {source.name}", done, size)
    if source.sha256 and sha.hexdigest() != source.sha256:
        raise BaseModelError(
            f"The file of {source.name!r} is damaged: it does not have the checksum that its store states.",
            f"Download it again from where it came: {source.source}.",
        )
    return sha.hexdigest()


def _make_change_error(source: FileSource) -> BaseModelError:
    return BaseModelError(
        f"{source.path.name!r} was changed while it was read.",
        "Wait until the program that writes it has finished, and start again.",
    )


def _convert(
    workspace: Workspace,
    source: FileSource,
    sha256: str,
    status: list[int],
    report: Report,
    poll_stop: PollStop,
) -> Path:
    """Converts the file into a new folder of the workspace."""
    base_id = converted_bases.make_base_id(source.name, sha256)
    with workspace.build(KIND, source.name, base_id, replace=True) as draft:
        request = Request(
            str(source.path), source.path.name, status, str(draft.path), source.stops, source.template
        )
        result = _run_child(request, source, report, poll_stop)
        converted_bases.write(
            draft.path,
            ConvertedBase(
                id=base_id,
                name=source.name,
                source=source.source,
                file=str(source.path),
                sha256=sha256,
                bytes=status[2],
                mtime_ns=status[3],
                architecture=result.architecture,
                quantization=result.quantization,
                parameters=result.parameters,
                notes=[*source.notes, *result.notes],
                licence=source.licence,
            ),
        )
        draft.expect(RECORD, *result.files)
        if reason := base_models.describe_defect(draft.path):
            raise StorageError(f"The conversion of {source.name!r} failed: {reason}", "Start it again.")
    return workspace.path(KIND, base_id)


def _run_child(request: Request, source: FileSource, report: Report, poll_stop: PollStop) -> Conversion:
    """Runs the conversion in a process of its own, which ends with this one.

    Raises:
        StudioError: what the child reported, or its unexpected end. Cancelled
    """
    with subprocess.Popen(
        build_child_command("core.gguf.conversion", "run"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(asdict(request)).encode())
                process.stdin.close()
            report(f"Converting {source.name}", 0, 0)
            for line in process.stdout:
                if poll_stop():
                    raise Cancelled("The conversion was stopped; nothing of it is left.")
                message = json.loads(line)
                if "result" in message:
                    return check_type(Conversion, message["result"])  # type: ignore[no-any-return]
                if "error" in message:
                    raise _ERRORS.get(message["kind"], StudioError)(message["error"], message["fix"])
                report(f"{message['text']} {source.name}", message["done"], message["total"])
        finally:
            process.kill()
    raise BaseModelError(
        f"The process that converts {source.name!r} ended with code {process.returncode}.",
        "It may have run out of memory: close other programs and start again.",
    )


_ERRORS: dict[str, type[StudioError]] = {
    e.__name__: e for e in (BaseModelError, StorageError, DiskFull, Cancelled)
}


def make_logging_report(name: str, log: logging.Logger = logger) -> Report:
    """A report that writes a line every few seconds, and one for each new activity."""
    clock, last = LineClock(), ""

    def report(text: str, done: int, total: int) -> None:
        nonlocal last
        if text != last or clock.is_due():
            last = text
            share = f": {done / 1e6:.0f} of {total / 1e6:.0f} MB" if total > 1 else ""
            log.info("%s (%s)%s", text, name, share)

    return report


def summarize(path: Path) -> tuple[GgufSummary | None, str]:
    """(what a file is, why it cannot be converted or "")"""
    try:
        summary = read_summary(path)
    except StudioError as e:
        return None, str(e)
    error = explain_refusal(summary.architecture, path.name) if summary.architecture else None
    if error is None and summary.parts > 1:
        return summary, f"It is one of {summary.parts} parts of a model."
    return summary, str(error) if error else ""
