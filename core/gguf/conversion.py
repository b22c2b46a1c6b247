"""Converts one GGUF file into a folder of transformers, in a process of its own.

    parent ─ stdin: a `Request` as JSON ─> child
    child ─ stdout: {"text", "done", "total"} ... {"result": ...} or {"error", "fix"} ─> parent

A damaged file can then end the child only. The parent is `core.engine.base_files`, which kills the child to
cancel it, and which gives the folder its place once it is complete.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from core.errors import BaseModelError, StudioError
from core.gguf.architectures import ARCHITECTURES
from core.gguf.header import GgufHeader, read_header
from core.gguf.reading_plan import Plan, plan_conversion
from core.gguf.templates import find_template
from core.gguf.tokenizer import GgufTokenizer, build_tokenizer, save_tokenizer
from core.gguf.weights import count_bytes, read_numbers, write_weights
from core.store.files import ensure_space, storage_error

REPORT_SECONDS = 0.2
OTHER_FILES_BYTES = 64 << 20  # tokenizer and configs, at most
CHANGED = "Wait until the program that writes it has finished, and start again."

Step = Callable[[str, int, int], None]  # what is done, bytes so far, bytes in all


@dataclass(frozen=True)
class Request:
    """What to convert.

    Attributes:
        path: the GGUF file. name: of it, for messages.
        status: what `status_of` said of the file when its digest was computed.
        folder: is filled; it must exist.
        stops: texts that end an answer, which a store of models keeps beside the file.
        template: the chat template in the form of another program; it is recognized, not run.
    """

    path: str
    name: str
    status: list[int]
    folder: str
    stops: list[str] = dataclasses.field(default_factory=list)
    template: str = ""


@dataclass(frozen=True)
class Conversion:
    """What a file became.

    Attributes:
        architecture: its label. quantization: of the file. parameters: numbers in the weights.
        files: names of the files in the folder.
        notes: what is left out or was assumed, a sentence each.
    """

    architecture: str
    quantization: str
    parameters: int
    files: list[str]
    notes: list[str]


def status_of(file: IO[bytes]) -> list[int]:
    """What changes when a file is replaced or written to: device, number, size, and two times."""
    status = os.fstat(file.fileno())
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def convert(request: Request, step: Step = lambda text, done, total: None) -> Conversion:
    """Fills the folder with config, weights and tokenizer.

    Raises:
        BaseModelError: the file cannot be converted, or changed while it was read.
        StorageError, DiskFull: the folder cannot be written.
    """
    folder = Path(request.folder)
    try:
        with open(request.path, "rb") as file:
            _check_status(request, file)
            step("Reading the header", 0, 1)
            header = read_header(file, request.name)
            plan = plan_conversion(header, lambda info: read_numbers(file, info, request.name))
            size = count_bytes(plan.tensors)
            ensure_space(folder, size + OTHER_FILES_BYTES)
            step("Building the tokenizer", 0, 1)
            context = plan.config["max_position_embeddings"]
            template = find_template(request.template, header)
            built = build_tokenizer(header, context, request.stops, template)
            try:
                files = save_tokenizer(built, folder, request.name)
                files += _write_configs(folder, plan, built)
                report = _make_report(step)
                files += write_weights(file, request.name, plan.tensors, folder, report)
            except OSError as e:
                raise storage_error(e, folder / "model.safetensors") from e
            _check_status(request, file)
    except OSError as e:
        raise BaseModelError(
            f"{request.name!r} cannot be read: {e.strerror or e}.", "Check its permissions."
        ) from e
    return Conversion(
        ARCHITECTURES[header.architecture].label,
        header.quantization,
        size // 2,
        sorted(files),
        [*plan.notes, *built.notes, *_list_notes(header, built, template)],
    )


def _check_status(request: Request, file: IO[bytes]) -> None:
    if status_of(file) != request.status:
        raise BaseModelError(f"{request.name!r} was changed while it was read.", CHANGED)


def _make_report(step: Step) -> Callable[[int, int], None]:
    return lambda done, total: step("Converting", done, total)


def _write_configs(folder: Path, plan: Plan, built: GgufTokenizer) -> list[str]:
    generation: dict[str, Any] = {**built.ids}
    if built.end_ids:
        generation["eos_token_id"] = built.end_ids if len(built.end_ids) > 1 else built.end_ids[0]
    contents = {"config.json": {**plan.config, **built.ids}, "generation_config.json": generation}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return list(contents)


def _list_notes(header: GgufHeader, built: GgufTokenizer, template: str) -> list[str]:
    if header.metadata.get("tokenizer.chat_template"):
        return []
    if template:
        return ["The file has no chat template; one that its store describes was recognized."]
    return ["The file has no chat template: the studio's default is used."]


# --- the child


def main(stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """Reads the request, converts, and writes progress and result as lines of JSON."""
    request = Request(**json.loads(stdin.read()))
    last = 0.0

    def step(text: str, done: int, total: int) -> None:
        nonlocal last
        if done in (0, total) or time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            write({"text": text, "done": done, "total": total})

    def write(message: Mapping[str, Any]) -> None:
        stdout.write(json.dumps(message).encode() + b"\n")
        stdout.flush()

    try:
        write({"result": dataclasses.asdict(convert(request, step))})
    except StudioError as e:
        write({"error": e.what, "fix": e.fix, "kind": type(e).__name__})


def run() -> None:
    """The entrance of the child. What libraries print goes to standard error."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    main(sys.stdin.buffer, output)
