"""The terminal's verb `notebook`: a run as a notebook for Colab or Kaggle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.cli.common import AddVerb
from core.engine import Engine
from core.remote.notebook import write_notebook


def add_command(group: Any, add: AddVerb) -> None:
    """Adds `notebook`."""
    help = "Write a notebook that trains a run on Colab or Kaggle, and the file that it needs there."
    p = add(group, "notebook", make_notebook, help)
    p.add_argument("run", help="Id of a run; one that has finished becomes a new run with its settings.")
    p.add_argument("-o", "--output", type=Path, help="The notebook to write. Default: RUN.ipynb.")


def make_notebook(engine: Engine, args: argparse.Namespace) -> Any:
    written = write_notebook(engine.workspace, args.run, args.output or Path(f"{args.run}.ipynb"))
    print(f"wrote {written.notebook} and {written.kit}")
    if not written.base:
        print(f"Set BASE in its first cell: {written.bundle.base} is a folder of this machine.")
    print(f"Upload both, run all cells, then: python -m core bundle collect {written.result}")
    return {
        "notebook": str(written.notebook),
        "kit": str(written.kit),
        "result": written.result,
        "run": written.bundle.run_id,
        "adapter": written.bundle.adapter_id,
    }
