"""Sends the open cells of a grid to other machines: a bundle per cell, and a command of the user for each."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.engine import Engine
from core.engine.grids import CellResult
from core.errors import RunError, SpecError
from core.remote import command_template
from core.remote.pack import pack
from core.spec.training import RunStatus
from core.store.bundles import list_bundles, save_bundle
from core.store.runs import RunExtra
from core.train import launcher


@dataclass(frozen=True)
class SentCell:
    """A cell that was sent.

    Attributes:
        index: index of the cell in its grid.
        name: name of its run.
        bundle, result: the file that was packed, and the file that the other machine writes.
        output: what the template's command printed.
    """

    index: int
    name: str
    bundle: Path
    result: Path
    output: str


def send_cells(
    engine: Engine, grid_id: str, template: str, quantization: str = "auto", again: bool = False
) -> Iterator[SentCell]:
    """Packs every open cell of a grid and runs the template's command with it, one cell after the other.

    Args:
        template: see `core.remote.command_template`.
        quantization: how the other machines load the base.
        again: also send cells that were sent before and whose result was not collected.

    Yields:
        each cell after its command has ended.

    Raises:
        SpecError: the template is invalid, or its program does not exist. RunError: its command failed; the
            cells before it are sent.
    """
    command_template.split(template)
    sent = {b.checksum for b in list_bundles(engine.workspace) if b.extra.handed}
    rows = sorted(engine.grids.results(grid_id).rows, key=lambda r: r.cell.index)
    for row in rows:
        cell = row.cell
        if not _is_open(row) or (cell.key in sent and not again):
            continue
        engine.runs.check(cell.spec)
        # A finished run whose adapter was deleted cannot be trained again: its cell gets a new run.
        can_continue = row.run is not None and row.run.status is not RunStatus.DONE
        bundle = pack(
            engine.workspace,
            row.run.id if row.run is not None and can_continue else cell.spec,
            None,
            engine.bases.current().name,
            quantization,
            RunExtra(grid=grid_id, cell=cell.index),
        )
        archive, result = (
            engine.workspace.path("exports", bundle.run_id, name) for name in ("bundle.zip", "result.zip")
        )
        # Without its hyphens, a name that begins with one cannot be read as an option.
        values = {"bundle": str(archive), "result": str(result), "name": cell.spec.name.lstrip("-")}
        output = _run_command(command_template.fill(template, make_command(archive, result), values))
        extra = dataclasses.replace(bundle.extra, handed=time.time())
        save_bundle(engine.workspace, dataclasses.replace(bundle, extra=extra))
        yield SentCell(cell.index, cell.spec.name, archive, result, output)


def _is_open(row: CellResult) -> bool:
    """Whether a cell has neither a run in progress nor an adapter."""
    if row.run is None:
        return True
    return not row.run.status.is_alive and not (row.has_ended and row.adapter)


def make_command(bundle: Path, result: Path) -> list[str]:
    """The command that {command} stands for: trains the bundle and writes the result."""
    return [sys.executable, "-m", "core", "bundle", "run", str(bundle), "-o", str(result)]


def _run_command(arguments: list[str]) -> str:
    """Runs a filled-in template without a shell, and returns what it printed."""
    try:
        process = subprocess.run(
            arguments,
            env=launcher.filter_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except (OSError, ValueError) as e:
        raise SpecError(
            f"The template's program {arguments[0]!r} could not be started ({e}).",
            "Begin the template with a program of this machine.",
        ) from e
    if process.returncode:
        output = process.stdout.strip()[-500:]
        raise RunError(
            f"The template's command ended with code {process.returncode}: {output!r}.",
            "Correct the template and send the grid again; cells that were sent are skipped.",
        )
    return process.stdout
