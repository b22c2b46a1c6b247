"""Jobs that test_child_process runs in processes of their own."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from core import errors
from core.data.child_process import Parent, serve
from core.data.formats.text_encodings import Candidate
from core.errors import Cancelled
from core.progress import ReadProgress

ERRORS = [
    errors.DataError("the row is empty.", "Delete it.", file="a.csv", line=7),
    errors.UnknownEncoding(
        "not valid utf-8.",
        "Choose one.",
        file="b.txt",
        line=2,
        candidates=[Candidate("cp1252", "Western", ("é", "ü"), ("latin-1",), 0.5, 0.25)],
    ),
    errors.UnconfirmedRoles("question?", "Confirm.", kind="task", roles={"question": "a", "answer": "b"}),
    errors.SpecError("Rank must be at most 3, got 4.").at("rank"),
    errors.DamagedRecord("notes/run.json", "it is empty"),
    errors.DiskFull("The disk is full.", "Delete something."),
    errors.Cancelled("Stopped."),
]


def run() -> None:
    serve(_work)


def _work(request: dict[str, Any], parent: Parent) -> Any:
    what = request["what"]
    if what == "ask":
        return [parent.ask({"number": n}) for n in range(3)]
    if what == "error":
        raise ERRORS[request["index"]]
    if what == "memory":
        raise MemoryError
    if what == "defect":
        raise ValueError("a defect")
    if what == "log":
        sys.stdout.write("what a library prints is not a message\n")
        logging.getLogger("core.data.loud").warning("%d rows are odd", 3)
        logging.getLogger("core.data.loud").debug("is not sent")
        return sorted(m for m in ("torch", "transformers", "numpy", "gradio") if m in sys.modules)
    if what == "kill":
        sys.stderr.write("the last words")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    try:  # reports without end
        while True:
            parent.report(ReadProgress(1, 2, "Working"))
    except Cancelled:
        Path(request["path"]).write_text("removed its draft", encoding="utf-8")
        raise
