"""What an export takes, before it starts: bytes on the disk and free bytes, and roughly how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import BaseModelError
from core.export.base_layout import describe_layout
from core.export.merged_folder import count_copied_bytes, count_weight_bytes
from core.export.merged_tensors import MergedTensors
from core.export.peft_folder import count_peft_bytes
from core.export.sources import ExportSource, read_source
from core.gguf.architectures import ARCHITECTURES, list_tensors
from core.gguf.header_writer import NewTensor
from core.gguf.model_metadata import build_keys
from core.gguf.model_tensors import FolderTensors, ModelTensors
from core.gguf.quantization import INSTALL, ModelShape, choose_type, find_library
from core.spec.export import ExportSpec
from core.store.workspace import Workspace
from core.train.memory import format_bytes

# Values that one core merges, encodes and writes in a second (measured; slower on a busy machine).
VALUES_PER_SECOND = {"BF16": 25e6, "F16": 25e6, "F32": 25e6, "Q8_0": 5e6, "Q4_0": 15e6, "Q4_K_M": 3e6}
HASH_BYTES_PER_SECOND = 400e6  # every file is read again for its checksum
START_SECONDS = 8.0  # the process, its libraries, the tokenizer
RECORD_BYTES = 200_000  # card, record, recipes
ADAPTER_BYTES = 4  # of a value in an adapter GGUF


@dataclass(frozen=True)
class Estimate:
    """What an export takes.

    Attributes:
        bytes: of all its files.
        free_bytes: that must be free on the disk of the workspace.
        seconds: roughly, without the check of the file.
    """

    bytes: int
    free_bytes: int
    seconds: float

    @property
    def text(self) -> str:
        """One sentence for the user."""
        return (
            f"The export takes about {format_bytes(self.bytes)} on the disk and "
            f"about {_format_seconds(self.seconds)}, and the check of the file after that."
        )


def estimate(workspace: Workspace, spec: ExportSpec, base: str, base_folder: Path | None = None) -> Estimate:
    """Estimates an export, from the headers of the files alone.

    Args:
        base: its name; base_folder: with its files, or None to look for it.

    Raises:
        SpecError, AdapterError, BaseModelError, NotFound: it cannot be exported in this form.
    """
    layout = describe_layout(base, base_folder)
    source = read_source(workspace, spec, layout)
    if spec.form == "peft":
        size = count_peft_bytes(source)
        return _make(size * (2 if spec.plain_copy else 1), size / 4, "F32")
    tensors = FolderTensors(layout.folder)
    if spec.form == "bundle":
        return _estimate_bundle(spec, source, tensors)
    merged = MergedTensors(tensors, source)
    values = _count_values(merged)
    if spec.form == "merged":
        size = count_weight_bytes(merged, spec.precision)
        return _make(size + count_copied_bytes(layout.folder), values, "F32")
    size = _count_gguf_bytes(merged, spec.quantization) + count_copied_bytes(layout.folder)
    return _make(size, values, spec.quantization.upper())


def _estimate_bundle(spec: ExportSpec, source: ExportSource, tensors: ModelTensors) -> Estimate:
    # Every adapter, and for more than one the sum of them for Ollama.
    files = 1 if source.is_plain else 2
    factors = [f for part in source.parts for f in part.stored.factors.values()]
    values = files * sum(f.a.numel() + f.b.numel() for f in factors)
    build_keys(tensors.config)  # refuses other architectures
    if not spec.include_base:
        return _make(ADAPTER_BYTES * values, values, "F16")
    size = _count_gguf_bytes(tensors, spec.quantization)
    size += ADAPTER_BYTES * values + count_copied_bytes(source.layout.folder)
    return _make(size, _count_values(tensors), spec.quantization.upper())


def _make(size: int, values: float, kind: str) -> Estimate:
    size += RECORD_BYTES
    seconds = START_SECONDS + values / VALUES_PER_SECOND[kind] + size / HASH_BYTES_PER_SECOND
    return Estimate(size, size, seconds)


def _count_values(tensors: ModelTensors) -> int:
    return count_weight_bytes(tensors, "f32") // 4


def _count_gguf_bytes(tensors: ModelTensors, quantization: str) -> int:
    """The bytes of a GGUF file without its header.

    Raises:
        BaseModelError: another architecture, or the quantizer is missing.
    """
    kind = quantization.upper()
    keys = build_keys(tensors.config)
    has_native = find_library() is not None
    if kind == "Q4_K_M" and not has_native:
        raise BaseModelError("Q4_K_M needs llama.cpp's own quantizer, which is not installed.", INSTALL)
    shape = ModelShape(int(keys.config["num_hidden_layers"]), bool(keys.config["tie_word_embeddings"]))
    size = 0
    for rule in list_tensors(ARCHITECTURES[keys.architecture], keys.config):
        choice = choose_type(kind, rule.source, rule.shape, shape, has_native)
        new = NewTensor(rule.source, rule.shape, choice.type)
        size += new.bytes + new.gap
    return size


def _format_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{max(5, round(seconds / 5) * 5)} seconds"
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
