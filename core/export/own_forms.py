"""Adapters that are more than products of two factors: exported alone, at weight 1, exactly.

    DoRA                 W' = m / |W + s B A| * (W + s B A)       m: one number per output
    modules_to_save      the stored weights replace those of the base
    trained tokens       the stored vectors replace rows of an embedding
    experts              stays in PEFT's form: the factors of all experts are stored together

Source of DoRA: Liu et al. 2024, arXiv 2402.09353.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file

from core.errors import AdapterError
from core.model.deltas import PREFIX, StoredFactors, make_scale_function
from core.model.low_rank import Factors
from core.spec.export import ExportSpec
from core.store import adapters
from core.store.adapter_config import OWN_FORMS, parse_config
from core.store.adapter_weights import MAGNITUDE, TOKEN_END
from core.store.adapters import Adapter
from core.store.files import read_json
from core.store.workspace import Workspace

EXPERTS = "target_parameters"
_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class OwnForm:
    """The files of such an adapter.

    Attributes:
        config: as `core.store.adapter_config.parse_config` returns it.
        tensors: under the names of peft's file format.
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(repr=False)

    @property
    def low_rank_part(self) -> StoredFactors:
        """Its low-rank part; nothing of experts."""
        if self.config.get(EXPERTS):
            return StoredFactors({}, {})
        modules = [k.removesuffix(_A) for k in self.tensors if k.endswith(_A)]
        factors = {
            m.removeprefix(PREFIX): Factors(self.tensors[m + _A], self.tensors[m + _B]) for m in modules
        }
        scale_for = make_scale_function(self.config)
        return StoredFactors(factors, {m: scale_for(m, f.rank) for m, f in factors.items()})

    def find_magnitudes(self) -> dict[str, torch.Tensor]:
        """Module -> m of DoRA, (O,)."""
        end = f".{MAGNITUDE}"
        found = {k.removesuffix(".weight"): t for k, t in self.tensors.items()}
        return {k.removesuffix(end).removeprefix(PREFIX): t for k, t in found.items() if k.endswith(end)}

    def find_replacements(self) -> dict[str, torch.Tensor]:
        """Parameter -> the weights that replace it."""
        names = tuple(self.config.get("modules_to_save") or ())
        found = {k.removeprefix(PREFIX): t for k, t in self.tensors.items() if ".lora_" not in k}
        return {k: t for k, t in found.items() if k.rpartition(".")[0] in names}

    def find_tokens(self) -> dict[str, tuple[list[int], torch.Tensor]]:
        """Parameter -> token ids and their vectors, (ids, D)."""
        table = self.config.get("trainable_token_indices") or {}
        return {
            f"{name}.weight": (list(ids), self.tensors[f"{PREFIX}{name}{TOKEN_END}"])
            for name, ids in table.items()
        }


def read_own_form(workspace: Workspace, adapter: Adapter, spec: ExportSpec) -> OwnForm | None:
    """Reads an adapter that is not plain LoRA; None for one that is.

    Raises:
        AdapterError: it is damaged, or is not exported alone, at weight 1, in a form that can hold it.
    """
    config = adapters.read_files(
        workspace,
        adapter.id,
        lambda folder: parse_config(read_json(folder / adapters.CONFIG), only_plain=False),
    )
    kind = next((text for name, text in OWN_FORMS.items() if config.get(name)), "")
    if config.get(EXPERTS):
        kind = "trained on experts"
    if not kind:
        return None
    others = [a for a, weight in spec.weights.items() if weight and a != adapter.id]
    is_alone = spec.weights[adapter.id] == 1 and not others and not spec.tilt
    if not is_alone or spec.form == "bundle":
        raise AdapterError(
            f"The adapter {adapter.name!r} is {kind}, which is more than a product of two factors: it is "
            "exported alone, at weight 1, and not in a bundle.",
            "Export it alone as PEFT or merged; or import it again with the repair that the import offers, "
            "which makes plain LoRA of it.",
        )
    if config.get(EXPERTS) and spec.form != "peft":
        raise AdapterError(
            f"The adapter {adapter.name!r} is {kind}, whose factors are stored together and are not merged.",
            "Export it as PEFT; for the other forms, train an adapter on attention only.",
        )
    adapters.verify(workspace, adapter.id)
    tensors = adapters.read_files(workspace, adapter.id, lambda folder: load_file(folder / adapters.WEIGHTS))
    return OwnForm(config, tensors)
