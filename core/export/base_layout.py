"""The layers of a base as its folder describes them, without its weights, and the tensors that hold them.

The model is built on torch's meta device, which takes no memory for weights. Where a parameter lies in the
files follows from the rules by which transformers loads them: renamed keys, and a prefix that may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from core.errors import BaseModelError
from core.model import mix_layout
from core.model.base import fingerprint, folder_of, locate
from core.model.families import Family, family_of


@dataclass(frozen=True)
class BaseLayout:
    """A base, as its files describe it.

    Attributes:
        name: as the user gave it ("embedded", a folder, a Hub id).
        folder: with its config, tokenizer and weights.
        config: of transformers.
        model: of transformers, on the meta device.
        ties: parameter -> the parameter whose values it shares.
    """

    name: str
    folder: Path
    fingerprint: str
    family: Family
    config: Any = field(repr=False)
    model: Any = field(repr=False)
    ties: dict[str, str] = field(repr=False)

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name in the model -> shape, rows first."""
        return {name: tuple(t.shape) for name, t in self.model.state_dict().items()}

    @cached_property
    def parameter_names(self) -> list[str]:
        """Names in the model, without buffers and without those that follow from the config."""
        return [name for name, _ in self.model.named_parameters(remove_duplicate=False)]

    def is_transposed(self, module: str) -> bool:
        """Whether a layer stores (inputs, outputs), as the Conv1D layers of GPT-2 do."""
        return type(self.model.get_submodule(module)).__name__ == "Conv1D"

    def find_depths(self, modules: Iterable[str]) -> dict[str, float]:
        """The relative depth of each module, as a mix's tilt uses it (`core.model.mix_layout`)."""
        paths = [path for path, _ in self.model.named_modules()]
        return mix_layout.relative_depths(paths, list(modules))

    def map_tensors(self, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
        """Where the tensors of the files go.

        Args:
            names: of the tensors in the files.

        Returns:
            name in the files -> (name in the model, whether it becomes only a part of that parameter)
        """
        mapping = get_model_conversion_mapping(self.model)
        renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
        converters = [m for m in mapping if isinstance(m, WeightConverter)]
        state = self.model.state_dict()
        places = {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(
                name, renamings, converters, self.model.base_model_prefix, state
            )
            if target not in state and name in state:
                target, pattern = name, None
            places[name] = (target, pattern is not None)
        return places


def describe_layout(name: str, folder: Path | None = None) -> BaseLayout:
    """Describes a base that is on this machine.

    Args:
        name: "embedded", a folder, or a Hub id.
        folder: with its files; None looks for it.

    Raises:
        BaseModelError: it is not on this machine, or its config cannot be read.
    """
    folder = folder or _find_folder(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        family = family_of(config)
        model = build_empty_model(family, config)
        digest = fingerprint(folder)
    except Exception as e:  # whatever a damaged folder makes the library raise
        text = f"{type(e).__name__}: {e}".split("\n")[0][:200]
        raise BaseModelError(
            f"The files of the base {name!r} cannot be read ({text}).",
            "The folder needs config.json, a tokenizer and *.safetensors weights.",
        ) from e
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    return BaseLayout(name, folder, digest, family, config, model, ties)


def _find_folder(name: str) -> Path:
    source, is_local = locate(name)
    if not is_local:
        raise BaseModelError(
            f"{name!r} is not on this machine, and an export reads its files.",
            "Download it under Base first, or choose an adapter of a base on this machine.",
        )
    return folder_of(source, is_local)


def build_empty_model(family: Family, config: Any) -> Any:
    """A model of transformers on the meta device, where weights take no memory."""
    auto = AutoModelForSeq2SeqLM if family.seq2seq else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=False)
