"""A foreign adapter in one form, whatever file it came from; and the reader for each form.

Letters: O outputs and I inputs of a layer, r rank, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import AdapterError
from core.importing import gguf_form, mlx_form, peft_form, pickled_weights, tools
from core.importing.peft_form import Extra
from core.importing.sources import GGUF, PICKLED, AdapterFiles
from core.importing.tensors import StoredTensor, read_safetensors


@dataclass(frozen=True)
class Factors:
    """The low-rank update of one layer.

    Attributes:
        a: (r, I), or (E r, I) for experts. b: (O, r), or (O, r E).
        alpha: None where the file states none.
        magnitude: (O,) of DoRA, or None.
        start: A and B before the first step, where the folder has them.
    """

    a: StoredTensor
    b: StoredTensor
    alpha: float | None
    magnitude: StoredTensor | None = None
    start: tuple[StoredTensor, StoredTensor] | None = None

    @property
    def rank(self) -> int:
        """The width of the factors: r, or E r for experts."""
        return self.a.shape[0]


@dataclass(frozen=True)
class ForeignAdapter:
    """An adapter as its file has it.

    Attributes:
        tool: what made it. form: how the file is laid out.
        settings: its configuration, whose fields are checked one by one; {} where it has none.
        factors: name of a layer, as the file has it -> its update.
        incomplete: layers with only one of the two factors.
        extras: tensors that are not low-rank factors.
        claimed_base: the base that it names, or "".
        problem: why a file of this kind cannot be imported at all, as (what, what to do); or None.
        architecture: of llama.cpp, for adapters as GGUF; else "".
    """

    files: AdapterFiles
    tool: str
    form: str
    settings: dict[str, Any]
    factors: dict[str, Factors]
    incomplete: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()
    claimed_base: str = ""
    problem: tuple[str, str] | None = None
    architecture: str = ""

    @property
    def is_rank_stabilized(self) -> bool:
        """Whether it is scaled by alpha / sqrt(r)."""
        return self.settings.get("use_rslora") is True


def read_foreign(files: AdapterFiles, scratch: Path) -> ForeignAdapter:
    """Reads an adapter's configuration and the shapes of its tensors.

    Args:
        scratch: a folder for files that are converted first.

    Raises:
        AdapterError: the file is damaged, or of a kind that cannot be read.
    """
    tool = tools.recognize(files)
    if files.weights.suffix.lower() == GGUF:
        parsed = gguf_form.read(files.weights)
        return ForeignAdapter(
            files=files,
            tool=tool,
            form="GGUF adapter of llama.cpp",
            settings={},
            factors={m: Factors(a, b, alpha) for m, (a, b, alpha) in parsed.factors.items()},
            incomplete=parsed.incomplete,
            extras=parsed.extras,
            claimed_base=parsed.base,
            problem=parsed.problem,
            architecture=parsed.architecture,
        )
    if files.weights.name == PICKLED:
        path = scratch / "converted.safetensors"
        pickled_weights.convert(files.weights, path)
        tensors = read_safetensors(path, files.weights.name)
    else:
        tensors = read_safetensors(files.weights)
    if mlx_form.is_mlx(files.config, tensors):
        return _read_mlx(files, tool, tensors)
    if not tensors:
        raise AdapterError(f"{files.weights.name!r} has no tensors.", "Choose the file of an adapter.")
    return _read_peft(files, tool, tensors)


def _read_mlx(files: AdapterFiles, tool: str, tensors: dict[str, StoredTensor]) -> ForeignAdapter:
    parsed = mlx_form.read(files.config, tensors)
    return ForeignAdapter(
        files=files,
        tool=tool,
        form="mlx-lm: transposed factors, scale instead of alpha",
        settings={"use_dora": parsed.is_dora},
        factors={
            m: Factors(a, b, alpha, magnitude) for m, (a, b, alpha, magnitude) in parsed.factors.items()
        },
        incomplete=parsed.incomplete,
        extras=parsed.extras,
        claimed_base=str(files.config.get("model") or ""),
        problem=parsed.problem,
    )


def _match_start(
    parts: dict[str, StoredTensor], start: dict[str, StoredTensor]
) -> tuple[StoredTensor, StoredTensor] | None:
    """The factors before the first step, where they have the shapes of the trained ones."""
    if "A" not in start or "B" not in start:
        return None
    is_same = all(start[side].shape == parts[side].shape for side in ("A", "B"))
    return (start["A"], start["B"]) if is_same else None


def _read_peft(files: AdapterFiles, tool: str, tensors: dict[str, StoredTensor]) -> ForeignAdapter:
    config = files.config
    parsed = peft_form.read(tensors)
    starts = peft_form.read(read_safetensors(files.start)).layers if files.start else {}
    factors = {
        m: Factors(
            parts["A"],
            parts["B"],
            peft_form.alpha_of(config, m),
            parts.get("magnitude"),
            _match_start(parts, starts.get(m, {})),
        )
        for m, parts in parsed.layers.items()
        if "A" in parts and "B" in parts
    }
    kind = str(config.get("peft_type") or "LORA").upper()
    problem = None
    if kind != "LORA":
        problem = (
            f"It is a {kind} adapter, not LoRA.",
            "Only LoRA can be mixed: merge it into its base with the tool that made it.",
        )
    packed = "pickled " if files.weights.name == PICKLED else ""
    return ForeignAdapter(
        files=files,
        tool=tool,
        form=f"PEFT ({packed}{files.weights.name})" if packed else "PEFT",
        settings=config,
        factors=factors,
        incomplete=tuple(m for m, parts in parsed.layers.items() if not {"A", "B"} <= set(parts)),
        extras=parsed.extras,
        claimed_base=str(config.get("base_model_name_or_path") or ""),
        problem=problem,
    )
