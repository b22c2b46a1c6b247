"""Which runtime an export is reopened in, and with which files."""

from __future__ import annotations

from pathlib import Path

from core.export import recipes
from core.export.check_job import CheckRequest
from core.export.forms import SCALES
from core.spec.export import ExportSpec
from core.store.files import read_json

FP32_BYTES = 4


def plan_check(
    spec: ExportSpec, files: Path, base_folder: Path, reference: str, parameters: int
) -> CheckRequest | str:
    """What the check opens; or why nothing can be opened, as a sentence.

    Args:
        files: the folder of the exported files. base_folder: of the base.
        reference: the folder that `core.export.reference` filled.
        parameters: of the base.
    """
    whole = FP32_BYTES * parameters
    if spec.form == "peft":
        return CheckRequest("peft", str(base_folder), reference, "exact", whole, {str(files): 1.0})
    if spec.form == "merged":
        precision = "exact" if spec.precision == "f32" else "bf16"
        return CheckRequest("transformers", str(files), reference, precision, whole)
    model, scales = files / recipes.name_gguf(spec.file_name, spec.quantization), {}
    if spec.form == "bundle":
        found = read_json(files / SCALES)
        model = files / found["base"]
        scales = {str(files / a["file"]): float(a["weight"]) for a in found["adapters"]}
    if not model.exists():
        return "The base is not in the bundle, so the adapters alone cannot answer."
    size = 2 * model.stat().st_size
    return CheckRequest("llama.cpp", str(model), reference, spec.quantization, size, scales)
