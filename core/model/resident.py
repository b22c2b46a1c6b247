"""The resident base with every adapter that someone uses, and how mixes of library ids become rows.

Knows which adapters hang on the base and under which peft names. Used by one thread only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from core.errors import AdapterError, Busy, SpecError
from core.model import experts, lora_init
from core.model.base import Base, folder_of, locate
from core.model.mixing import Mixer, PeftForwardRow, MixRow, unmixable_reason
from core.spec.mix import Mix
from core.store import adapters
from core.store.adapters import Adapter
from core.store.workspace import Workspace, read_json

# peft's and transformers' checkpoints agree on this one name for the adapter in training; with any
# other, loading the best or latest checkpoint silently does nothing.
TRAINEE = "default"
OFFSET = "start"  # peft's name of what the adapter in training started from, where that is taken off again (core.model.lora_init)
RESIDENT_LIMIT = 32  # adapters at once; the longest unused leaves first


class PeftForwardMix(Mix):
    """The adapter in training exactly as it trains, through peft's own forward: also where it cannot be mixed."""


class Resident:
    """One frozen base and the adapters that hang on it."""

    def __init__(self, base: Base, workspace: Workspace) -> None:
        self.base = base
        self.workspace = workspace
        self.peft: PeftModel | None = None
        self.mixer = Mixer(base.model)
        self.digests: dict[
            str, str
        ] = {}  # adapter id -> sha256 of the weights as loaded; the oldest use first
        self.trainee_id = ""  # library id that the adapter in training will have
        self.parent_ids: set[str] = set()  # ids that training is standing on
        self.trainee_unmixable_reason = ""  # why the adapter in training cannot be mixed

    @property
    def model(self) -> Any:
        """What forwards are called on: the inner transformers model, whose layers peft has wrapped."""
        return self.base.model

    def peft_name(self, adapter_id: str) -> str:
        return TRAINEE if adapter_id == self.trainee_id else adapter_id

    def load_adapters(self, mixes: Iterable[Mix]) -> None:
        """Loads every adapter that the mixes name and that is not here yet.

        Raises:
            NotFound: no such adapter. AdapterError: damaged, or of another base.
        """
        wanted = {a for mix in mixes for a in mix.weights}
        came = [a for a in sorted(wanted) if a != self.trainee_id and a not in self.digests]
        try:
            for adapter_id in came:
                self._load(adapter_id)
        except Exception:
            self.update_layout()  # for those that came before the one that did not fit
            raise
        for adapter_id in wanted & set(self.digests):  # used last, leaves last
            self.digests[adapter_id] = self.digests.pop(adapter_id)
        surplus = [a for a in self.digests if a not in wanted and a not in self.parent_ids]
        for adapter_id in surplus[: max(0, len(self.digests) - RESIDENT_LIMIT)]:
            self._drop(adapter_id)
            came.append(adapter_id)
        if came:
            self.update_layout()

    def update_layout(self) -> None:
        """Lays the adapters out anew for mixing."""
        self.mixer.update_layout(TRAINEE if self.trainee_id else "", apart=bool(self.trainee_unmixable_reason))

    def rows(self, mixes: Iterable[Mix]) -> list[dict[str, float]]:
        """Mixes in peft's names, one row each.

        Raises:
            AdapterError: a mix names the adapter in training, and that one cannot be mixed.
        """
        return [self._row(mix) for mix in mixes]

    def _row(self, mix: Mix) -> MixRow:
        if self.trainee_unmixable_reason and mix.weights.get(self.trainee_id):
            if isinstance(mix, PeftForwardMix):
                return PeftForwardRow({})
            raise AdapterError(
                f"The adapter in training cannot be mixed live: {self.trainee_unmixable_reason}.",
                "Its samples on the Train page show how it answers.",
            )
        return MixRow(self._named(mix.weights), self._named(mix.tilt))

    def _named(self, numbers: dict[str, float]) -> dict[str, float]:
        named = {self.peft_name(a): number for a, number in numbers.items()}
        if TRAINEE in named and self.has_offset:
            named[OFFSET] = named[TRAINEE]
        return named

    @property
    def has_offset(self) -> bool:
        """Does the adapter in training carry its start beside it?"""
        return self.peft is not None and OFFSET in self.peft.peft_config

    def stamp(self, row: int) -> dict[str, Any]:
        """What a row of the engaged batch really had active: weights, tilts and digests, by library id."""
        active, leaning = self.mixer.active_weights(row), self.mixer.active_tilt(row)
        weights, tilt = (
            {
                self.trainee_id if name == TRAINEE else name: round(n, 6)
                for name, n in part.items()
                if name != OFFSET
            }
            for part in (active, leaning)
        )
        return {
            "base": self.base.name,
            "base_fingerprint": self.base.fingerprint,
            "quantization": self.base.quantization,
            "weights": weights,
            "tilt": tilt,
            "adapters": {a: self.digests.get(a, "in training") for a in weights},
        }

    def _load(self, adapter_id: str) -> None:
        adapter = adapters.load(self.workspace, adapter_id)
        self.check_same_base(adapter)
        adapters.verify(self.workspace, adapter_id)
        folder = self.workspace.find("adapters", adapter_id)
        config = adapters.parse_config(read_json(folder / adapters.CONFIG))
        tensors = load_file(folder / adapters.WEIGHTS)
        self.add_adapter(adapter_id, config)
        self._fill(adapter_id, tensors)
        self.digests[adapter_id] = adapter.sha256  # which `verify` has just compared with the file

    def check_same_base(self, adapter: Adapter) -> None:
        """Refuses an adapter that was trained on another base.

        Raises:
            AdapterError: the fingerprints differ.
        """
        if adapter.base_fingerprint != self.base.fingerprint:
            raise AdapterError(
                f"The adapter {adapter.name!r} was trained on {adapter.base!r}, and the resident base is {self.base.name!r}.",
                "Start the studio with that base, or choose an adapter of this one.",
            )

    def add_adapter(self, name: str, config: dict[str, Any], trainable: bool = False) -> None:
        """Adds fresh LoRA layers under a peft name, frozen unless `trainable`.

        A run that is in training notices nothing: first weights are drawn with the dice set aside, and
        what is active and what needs gradients is put back (peft changes both when an adapter comes).

        Args:
            config: checked fields of a LoraConfig.

        Raises:
            AdapterError: it does not find its layers in this base, or they cannot be mixed.
        """
        lora = LoraConfig(**{**config, "inference_mode": not trainable, "init_lora_weights": True})
        before = self._flags()
        with (
            torch.random.fork_rng(enabled=not trainable),
            warnings.catch_warnings(),
            experts.expose_weight_names(self.base.model),
        ):
            warnings.filterwarnings("ignore", message=".*Already found a `peft_config`.*")
            try:
                if self.peft is None:
                    self.peft = get_peft_model(self.base.model, lora, adapter_name=name)
                else:
                    self.peft.add_adapter(name, lora)
            except (
                ValueError
            ) as e:  # peft's word for layers that are not there, or that others wrap in another way
                self._undo(name)
                self._settle(before)
                what = f"The adapter {name!r} cannot hang on the base {self.base.name!r}: {str(e)[:300]}"
                raise AdapterError(what, "Choose an adapter that was trained on this base.") from e
        self._settle({**before, **{k: trainable for k in self._flags() if f".{name}." in k}})
        for path, layer in self.base.model.named_modules():
            if (
                isinstance(layer, LoraLayer)
                and name in layer.r
                and (why := unmixable_reason(layer, TRAINEE if self.trainee_unmixable_reason else ""))
            ):
                self._delete(name)
                raise AdapterError(
                    f"The adapter {name!r} on {path!r} cannot be mixed: {why}.",
                    "Convert it to plain LoRA on linear layers first.",
                )

    def _undo(self, name: str) -> None:
        """Clears away what peft had hung before it refused the rest."""
        if self.peft is not None:
            self.peft.peft_config.pop(name, None)
        for path, layer in list(self.base.model.named_modules()):
            if isinstance(layer, LoraLayer) and self.peft is not None and name in layer.r:
                layer.delete_adapter(name)
            elif isinstance(layer, LoraLayer) and self.peft is None and not path.endswith(".base_layer"):
                self.base.model.set_submodule(path, layer.get_base_layer())

    def _flags(self) -> dict[str, bool]:
        return {k: p.requires_grad for k, p in self.peft.named_parameters()} if self.peft else {}

    def _settle(self, needs_gradient: dict[str, bool]) -> None:
        """Makes the run's own adapters the active ones again, and puts back who needs gradients."""
        if self.peft is None:
            return
        if self.trainee_id and TRAINEE in self.peft.peft_config:
            self.peft.base_model.set_adapter(
                [TRAINEE, *sorted(self.parent_ids), *([OFFSET] if self.has_offset else [])]
            )
            self.peft.active_adapter = TRAINEE
        for key, parameter in self.peft.named_parameters():
            parameter.requires_grad_(needs_gradient.get(key, False))

    def _fill(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Copies tensors into a hung adapter after comparing names and shapes.

        Raises:
            AdapterError: they do not fit this base; the adapter is taken off again.
        """
        assert self.peft is not None
        expected = get_peft_model_state_dict(self.peft, adapter_name=name, save_embedding_layers=False)
        if {k: tuple(v.shape) for k, v in expected.items()} != {
            k: tuple(v.shape) for k, v in tensors.items()
        }:
            self._delete(name)
            raise AdapterError(
                f"The tensors of {name!r} do not fit the base {self.base.name!r}.",
                "Choose an adapter that was trained on this base.",
            )
        set_peft_model_state_dict(self.peft, tensors, adapter_name=name)

    def _drop(self, adapter_id: str) -> None:
        self._delete(adapter_id)
        self.digests.pop(adapter_id, None)

    def _delete(self, name: str) -> None:
        assert self.peft is not None
        if len(self.peft.peft_config) > 1:
            before = self._flags()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.peft.delete_adapter(name)
            self._settle(before)
        else:  # peft cannot be without its last adapter: unwrap the base instead
            self.base.model = self.peft.unload()
            self.peft = None
            self.mixer.model = self.base.model

    def unload(self, adapter_id: str) -> None:
        """Takes an adapter off the base, because its files are being deleted or were changed.

        Raises:
            Busy: a run in training stands on it.
        """
        if adapter_id in self.parent_ids:
            raise Busy(f"The adapter {adapter_id!r} is in use by a run.", "Stop the run first.")
        if adapter_id in self.digests:
            self._drop(adapter_id)
            self.update_layout()

    def add_trainee(
        self, adapter_id: str, config: dict[str, Any], stack_on: str = "", start: str = "default"
    ) -> None:
        """Hangs a fresh trainable adapter, on top of a frozen active one where `stack_on` names it.

        Args:
            adapter_id: the library id that the adapter will have; mixes can use it at once.
            config: fields of a LoraConfig.
            start: what its first weights are, one of `core.spec.INITIALISATIONS`.

        Raises:
            SpecError: this base has nothing that the adapter could start from in that way.
        """
        if adapter_id in self.digests:  # what a stopped run had kept; it goes on from its checkpoint
            self._drop(adapter_id)
        if stack_on:
            self.load_adapters([Mix(weights={stack_on: 1.0})])
        self.trainee_id = adapter_id
        self.parent_ids = {stack_on} if stack_on else set()
        self.trainee_unmixable_reason = adapters.UNMIXABLE["use_dora"].why if config.get("use_dora") else ""
        self.add_adapter(TRAINEE, config, trainable=True)
        if start in lora_init.OFFSET_INITIALISATIONS:
            self.add_adapter(OFFSET, {**config, "lora_dropout": 0.0})  # the base's own part is never hidden from it
            self._settle(self._flags())
            lora_init.begin(self.base.model, TRAINEE, OFFSET, start)
        elif start == "loftq":
            if self.base.quantization != "nf4":
                raise SpecError(
                    "LoftQ makes up for what 4 bits lose, and this base is not quantised.",
                    "Choose another initialisation, or load the base in nf4.",
                )
            lora_init.make_up(
                self.base.model, TRAINEE, folder_of(*locate(self.base.name)), self.base.family.fan_in_fan_out
            )
        self.update_layout()

    def add_saved(self, adapter: Adapter, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Hangs an adapter that has just been written, out of memory: whoever mixes it next waits for no file.

        Args:
            config, tensors: what was written.
        """
        if adapter.unmixable:
            return
        self.add_adapter(adapter.id, adapters.parse_config(config))
        self._fill(adapter.id, tensors)
        self.digests[adapter.id] = adapter.sha256

    def remove_trainee(self) -> None:
        """Takes the adapter in training off the base; what is kept of it hangs there under its own name (`adopt`)."""
        self.trainee_id = ""
        for name in (OFFSET, TRAINEE):
            if self.peft is not None and name in self.peft.peft_config:
                self._delete(name)
        self.trainee_unmixable_reason = ""
        self.parent_ids = set()
        self.update_layout()
        self.base.model.requires_grad_(False)

    def export_trainee(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The adapter in training as the library keeps it: (tensors, config), plain LoRA also where its start was not."""
        tensors, config = self.trainee_state_dict(), self.adapter_config()
        if not self.has_offset:
            return tensors, config
        return lora_init.plain(tensors, self.full_state_dict(OFFSET)), lora_init.plain_config(config)

    def trainee_state_dict(self) -> dict[str, torch.Tensor]:
        """The adapter in training under the key names of peft's file format, on the CPU."""
        return self.full_state_dict(TRAINEE)

    def full_state_dict(self, name: str) -> dict[str, torch.Tensor]:
        """An adapter by peft's name, likewise; of a base that is spread over processes, all of which call this."""
        whole = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in self.local_state_dict(name).items()}
        return {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in whole.items()}

    def local_state_dict(self, name: str) -> dict[str, torch.Tensor]:
        """An adapter's own tensors by peft's name, where they lie."""
        assert self.peft is not None
        state: dict[str, torch.Tensor] = get_peft_model_state_dict(
            self.peft, adapter_name=name, save_embedding_layers=False
        )
        return state

    def restore_trainee(
        self, tensors: dict[str, torch.Tensor], start: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Puts a checkpoint's values into the adapter in training, and into what it started from.

        Raises:
            AdapterError: names or shapes do not fit.
        """
        self._fill(TRAINEE, tensors)
        if start is not None:
            self._fill(OFFSET, start)

    def adapter_config(self) -> dict[str, Any]:
        """The peft config of the adapter in training, as plain JSON values."""
        assert self.peft is not None
        config = self.peft.peft_config[TRAINEE]
        targets = config.target_modules
        return {
            "peft_type": "LORA",
            "task_type": self.base.family.task_type,
            "base_model_name_or_path": self.base.name,
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": config.lora_dropout,
            "target_modules": sorted(targets) if not isinstance(targets, str) else targets,
            **({"target_parameters": sorted(config.target_parameters)} if config.target_parameters else {}),
            "bias": "none",
            "fan_in_fan_out": bool(config.fan_in_fan_out),
            "use_rslora": bool(config.use_rslora),
            **({"use_dora": True} if config.use_dora else {}),
            "inference_mode": True,
            "init_lora_weights": True,
        }
