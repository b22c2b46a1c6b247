"""Records of exports for the tests of the page, with real files and a certificate."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from typing import Any

from core.engine import Engine
from core.export.certificate import Certificate, CheckedPrompt, Limits
from core.spec.export import ExportSpec
from core.store import exports
from core.store.exports import Export, ExportedFile

EXAMPLE = CheckedPrompt("Where is the red lamp?", "In the north room.", "In the south room.", 2, 6)
PASSED = Certificate(
    "passed",
    runtime="peft 0.21",
    studio="fp32",
    prompts=3,
    positions=1200,
    agreement=1.0,
    free_agreement=1.0,
    kl=2.0e-9,
    difference=3.1e-6,
    studio_perplexity=4.125,
    file_perplexity=4.125,
    same_stops=True,
    same_template=True,
    limits=Limits(0.99, 1e-4),
    examples=(EXAMPLE,),
    created=1.0,
)
FAILED = replace(PASSED, status="failed", agreement=0.6, reason="Both predict the same token at 60.0%.")


def put_export(
    engine: Engine,
    export_id: str = "answers-0a1b",
    files: dict[str, bytes] | None = None,
    certificate: Certificate | None = PASSED,
    form: str = "peft",
    **changes: Any,
) -> Export:
    """Stores an export with its files, by their names; without `files` it is not complete."""
    folder = exports.files_folder(engine.workspace, export_id)
    folder.mkdir(parents=True)
    listed = []
    for name, content in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        listed.append(ExportedFile(name, len(content), hashlib.sha256(content).hexdigest()))
    export = Export(
        export_id,
        "Answers",
        form,
        {**ExportSpec(form=form).to_json(), **changes},
        base="embedded",
        is_complete=files is not None,
        files=listed,
        certificate=asdict(certificate) if certificate and files else {},
        created=1_700_000_000.0,
    )
    exports.save(engine.workspace, export)
    return export
