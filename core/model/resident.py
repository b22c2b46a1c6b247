"""The resident base with all loaded adapters, and the adapter in training.

Adapters of the library are loaded on demand, under their library id as peft's adapter name, and the least
recently used ones are unloaded. Mixes, which name library ids, become rows for `core.model.mixing`. Training
adds its adapter to the same base, so a mix can use it while it trains.

Inference never touches peft's active adapters, and adding an adapter restores what a run in training has set.
`disable_adapter` and `adapter_names` are not used: the first un-freezes frozen adapters on exit, the second
leaves hooks behind when a generation is aborted. Only the worker's thread may use this module.

4-bit bases do not go through `prepare_model_for_kbit_training`, which upcasts every remaining 16-bit weight
for good, also for inference. Layer norms stay in bf16 on a GPU; LoRA weights are fp32.
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
from core.model import dora, experts, lora_init, own_weights
from core.model.base import Base, folder_of, locate
from core.model.mixing import Mixer, MixRow, PeftForwardRow
from core.model.peft_patch import unmixable_reason
from core.spec.gate import GateCalibration
from core.spec.mix import Mix
from core.store import adapters
from core.store.adapter_config import OWN_FORMS, parse_config
from core.store.adapters import Adapter
from core.store.files import read_json
from core.store.workspace import Workspace

# peft's name of the adapter in training. With any other name, transformers silently loads nothing when it
# loads the best or latest checkpoint.
TRAINEE = "default"
OFFSET = "start"  # peft's name of the frozen offset of PiSSA and OLoRA (core.model.lora_init)
DORA_IN_TRAINING = "its norms change with every step, so DoRA can be mixed when its run has ended"
RESIDENT_LIMIT = 32  # loaded adapters; the least recently used one is unloaded first


class PeftForwardMix(Mix):
    """A mix that is computed by peft's own forward, exactly as in training.

    It is the only way to sample from an adapter in training that cannot be mixed (DoRA).
    """


def read_stop_ids(adapter: Adapter, tokenizer: Any) -> frozenset[int]:
    """Returns the stop tokens that were added to an adapter when it was imported; usually none."""
    origin = adapter.metadata.get("imported")
    texts = origin.get("stop_tokens") if isinstance(origin, dict) else None
    known = tokenizer.get_vocab() if texts else {}
    found = {known[t] for t in texts or () if isinstance(t, str) and t in known}
    ids = origin.get("stop_ids") if isinstance(origin, dict) else None  # of tokens that its tool added
    listed = ids if isinstance(ids, list) else []
    return frozenset(found | {i for i in listed if isinstance(i, int) and not isinstance(i, bool)})


class Resident:
    """One frozen base with the adapters that are loaded on it.

    Attributes:
        base: the base model.
        workspace: the library that adapters are loaded from.
        peft: the PeftModel around the base, None while no adapter is loaded.
        mixer: activates mixes on the loaded adapters.
        digests: adapter id -> sha256 of the loaded weights, least recently used first.
        trainee_id: the library id that the adapter in training will have, "" while no run is in training.
        parent_ids: the frozen parent adapters that the adapter in training is stacked on.
        trainee_unmixable_reason: why the adapter in training cannot be mixed, "" where it can.
        calibrations: adapter id -> its kind and the calibration of its gate, of the loaded adapters.

    Example:
        >>> resident = Resident(load_base("embedded"), Workspace("workspace"))
        >>> mixes = [Mix(), Mix(weights={"sample-domain": 1.0})]
        >>> resident.load_adapters(mixes)
        >>> with inference_mode_for(resident, resident.rows(mixes)):
        ...     logits = resident.model(input_ids=ids.repeat(2, 1)).logits
    """

    def __init__(self, base: Base, workspace: Workspace) -> None:
        self.base = base
        self.workspace = workspace
        self.peft: PeftModel | None = None
        self.mixer = Mixer(base.model)
        self.digests: dict[str, str] = {}
        self.trainee_id = ""
        self.parent_ids: set[str] = set()
        self.trainee_unmixable_reason = ""
        self.calibrations: dict[str, tuple[str, GateCalibration | None]] = {}
        self._stop_ids: dict[str, frozenset[int]] = {}  # of adapters that have stop tokens of their own

    @property
    def model(self) -> Any:
        """The transformers model to call forwards on; peft has replaced its layers in place."""
        return self.base.model

    def peft_name(self, adapter_id: str) -> str:
        """Returns peft's name of an adapter: its library id, or `TRAINEE` for the adapter in training."""
        return TRAINEE if adapter_id == self.trainee_id else adapter_id

    def load_adapters(self, mixes: Iterable[Mix]) -> None:
        """Loads the adapters that the mixes name, and may unload the least recently used ones.

        Raises:
            NotFound: no adapter has this id.
            AdapterError: its files are damaged, or it was trained on another base.
        """
        names = {a for mix in mixes for a in mix.weights}
        changes = [a for a in sorted(names) if a != self.trainee_id and a not in self.digests]
        try:
            for adapter_id in changes:
                self._load(adapter_id)
        except Exception:
            self.update_layout()  # with the adapters that were loaded before the one that failed
            raise
        for adapter_id in names & set(self.digests):  # move to the end: most recently used
            self.digests[adapter_id] = self.digests.pop(adapter_id)
        unused = [a for a in self.digests if a not in names and a not in self.parent_ids]
        for adapter_id in unused[: max(0, len(self.digests) - RESIDENT_LIMIT)]:
            self._unload(adapter_id)
            changes.append(adapter_id)
        if changes:
            self.update_layout()

    def update_layout(self) -> None:
        """Rebuilds the layout of the mixer, after an adapter was added or removed."""
        self.mixer.update_layout(
            TRAINEE if self.trainee_id else "", exclude_trainee=bool(self.trainee_unmixable_reason)
        )

    def rows(self, mixes: Iterable[Mix]) -> list[dict[str, float]]:
        """Returns one row per mix, with peft's adapter names, for `Mixer.activate` and `inference_mode_for`.

        Raises:
            AdapterError: a mix uses the adapter in training, and that adapter cannot be mixed; or it has a
                weight on Auto, which no gate has chosen yet.
        """
        return [self._row(mix) for mix in mixes]

    def _row(self, mix: Mix) -> MixRow:
        if mix.auto:
            raise AdapterError(
                f"The adapter {next(iter(mix.auto))!r} is on Auto, and a number is needed here.",
                "Set its weight to a number.",
            )
        if self.trainee_unmixable_reason and mix.weights.get(self.trainee_id):
            if isinstance(mix, PeftForwardMix):
                return PeftForwardRow({})
            raise AdapterError(
                f"The adapter in training cannot be mixed live: {self.trainee_unmixable_reason}.",
                "Its samples on the Train page show how it answers.",
            )
        return MixRow(self._by_peft_name(mix.weights), self._by_peft_name(mix.tilt))

    def _by_peft_name(self, numbers: dict[str, float]) -> dict[str, float]:
        """Converts library id -> number to peft name -> number; the offset gets the number of its adapter."""
        by_name = {self.peft_name(a): number for a, number in numbers.items()}
        if TRAINEE in by_name and self.has_offset:
            by_name[OFFSET] = by_name[TRAINEE]
        return by_name

    @property
    def has_offset(self) -> bool:
        """Whether the adapter in training has a frozen offset (`core.model.lora_init`)."""
        return self.peft is not None and OFFSET in self.peft.peft_config

    def find_stop_ids(self, mix: Mix) -> frozenset[int]:
        """Returns the tokens that end an answer of a mix, beside those of the base; usually none."""
        if not self._stop_ids:
            return frozenset()
        return frozenset().union(*(self._stop_ids.get(a, ()) for a, weight in mix.weights.items() if weight))

    def set_calibration(self, adapter_id: str, calibration: GateCalibration | None) -> None:
        """Gives a loaded adapter a new calibration; the next one that is loaded reads it from the library."""
        if adapter_id in self.calibrations:
            self.calibrations[adapter_id] = self.calibrations[adapter_id][0], calibration

    def stamp(self, row: int, precision: str = "") -> dict[str, Any]:
        """Returns the stamp of a row: the base, and the active weights, tilts and digests by library id.

        Weights and tilts are read back from the tensors that the layers multiply by, not from the request.

        Args:
            row: the index of the row in the batch.
            precision: of the packed weights that answer; "" is the base's own.
        """
        weights, tilt = (
            {
                self.trainee_id if name == TRAINEE else name: round(n, 6)
                for name, n in numbers.items()
                if name != OFFSET
            }
            for numbers in (self.mixer.active_weights(row), self.mixer.active_tilt(row))
        )
        return {
            "base": self.base.name,
            "base_fingerprint": self.base.fingerprint,
            "quantization": self.base.quantization,
            **({"answered_in": precision} if precision else {}),
            "weights": weights,
            "tilt": tilt,
            "adapters": {a: self.digests.get(a, "in training") for a in weights},
        }

    def _load(self, adapter_id: str) -> None:
        adapter = adapters.load(self.workspace, adapter_id)
        self.check_same_base(adapter)
        adapters.verify(self.workspace, adapter_id)
        config, tensors = adapters.read_files(
            self.workspace,
            adapter_id,
            lambda folder: (
                parse_config(read_json(folder / adapters.CONFIG), only_plain=False),
                load_file(folder / adapters.WEIGHTS),
            ),
        )
        self._add_library_adapter(adapter, config, tensors)
        self.digests[adapter_id] = adapter.sha256  # `verify` has just compared it with the file
        if stop_ids := read_stop_ids(adapter, self.base.tokenizer):
            self._stop_ids[adapter_id] = stop_ids

    def _add_library_adapter(
        self, adapter: Adapter, config: dict[str, Any], tensors: dict[str, torch.Tensor]
    ) -> None:
        """Adds an adapter of the library as plain LoRA, with its row gains and its own weights beside it.

        Args:
            config: as `parse_config` returns it, of any form.
            tensors: keys as in peft's file format.
        """
        adapter_id = adapter.id
        self.calibrations[adapter_id] = adapter.kind, GateCalibration.from_json(adapter.metadata.get("gate"))
        factors, own = own_weights.split_own(tensors)
        factors, magnitudes = dora.split_magnitudes(factors)
        self.add_adapter(adapter_id, {k: v for k, v in config.items() if k not in OWN_FORMS})
        self._copy_tensors(adapter_id, factors)
        try:
            if magnitudes:
                self.mixer.gains[adapter_id] = dora.fold_gains(self.base.model, adapter_id, magnitudes)
            if own:
                token_ids = config.get("trainable_token_indices") or {}
                self.mixer.own_weights[adapter_id] = own_weights.build_own_weights(
                    self.base.model, adapter.name, own, token_ids
                )
        except AdapterError:
            self._delete_adapter(adapter_id)
            raise

    def check_same_base(self, adapter: Adapter) -> None:
        """Checks that an adapter was trained on the resident base, by fingerprint.

        Raises:
            AdapterError: it was trained on another base.
        """
        if adapter.base_fingerprint != self.base.fingerprint:
            raise AdapterError(
                f"The adapter {adapter.name!r} was trained on {adapter.base!r}, "
                f"and the resident base is {self.base.name!r}.",
                "Start the studio with that base, or choose an adapter of the resident base.",
            )

    def add_adapter(self, name: str, config: dict[str, Any], trainable: bool = False) -> None:
        """Adds new LoRA layers under a peft name, frozen unless `trainable`.

        A run in training is not affected. The first weights of a frozen adapter are drawn inside `fork_rng`.
        The active adapters and the `requires_grad` flags, both of which peft changes here, are restored.

        Args:
            config: fields of a LoraConfig that passed the library's checks.

        Raises:
            AdapterError: the base lacks its layers, or the adapter cannot be mixed.
        """
        lora = LoraConfig(**{**config, "inference_mode": not trainable, "init_lora_weights": True})
        before = self._gradient_flags()
        # On ZeroGPU, torch reports a GPU that the process of the page must not touch; its base is on the CPU.
        devices: list[int] | None = [] if self.base.device.type == "cpu" else None
        with (
            torch.random.fork_rng(devices, enabled=not trainable),
            warnings.catch_warnings(),
            experts.expose_weight_names(self.base.model),
        ):
            warnings.filterwarnings("ignore", message=".*Already found a `peft_config`.*")
            # An update of a tied head stays beside the base here: nothing is merged into the shared weights.
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True.*")
            try:
                if self.peft is None:
                    self.peft = get_peft_model(self.base.model, lora, adapter_name=name)
                else:
                    self.peft.add_adapter(name, lora)
            except ValueError as e:  # no such layers, or another adapter wraps them in another way
                self._remove_partial_adapter(name)
                self._restore_training_state(before)
                what = f"The adapter {name!r} cannot be added to the base {self.base.name!r}: {str(e)[:300]}"
                raise AdapterError(what, "Choose an adapter that was trained on this base.") from e
        after = {k: trainable for k in self._gradient_flags() if f".{name}." in k}
        self._restore_training_state({**before, **after})
        for path, layer in self.base.model.named_modules():
            if (
                isinstance(layer, LoraLayer)
                and name in layer.r
                and (why := unmixable_reason(layer, TRAINEE if self.trainee_unmixable_reason else ""))
            ):
                self._delete_adapter(name)
                raise AdapterError(
                    f"The adapter {name!r} on {path!r} cannot be mixed: {why}.",
                    "Convert it to plain LoRA on linear layers first.",
                )

    def _remove_partial_adapter(self, name: str) -> None:
        """Removes the layers that peft had added before it raised."""
        if self.peft is not None:
            self.peft.peft_config.pop(name, None)
        for path, layer in list(self.base.model.named_modules()):
            if isinstance(layer, LoraLayer) and self.peft is not None and name in layer.r:
                layer.delete_adapter(name)
            elif isinstance(layer, LoraLayer) and self.peft is None and not path.endswith(".base_layer"):
                self.base.model.set_submodule(path, layer.get_base_layer())

    def _gradient_flags(self) -> dict[str, bool]:
        """Parameter name -> requires_grad."""
        return {k: p.requires_grad for k, p in self.peft.named_parameters()} if self.peft else {}

    def _restore_training_state(self, gradient_flags: dict[str, bool]) -> None:
        """Restores what peft changes when an adapter is added or deleted, for a run in training.

        Args:
            gradient_flags: parameter name -> requires_grad; parameters that are not named are frozen.
        """
        if self.peft is None:
            return
        if self.trainee_id and TRAINEE in self.peft.peft_config:
            self.peft.base_model.set_adapter(
                [TRAINEE, *sorted(self.parent_ids), *([OFFSET] if self.has_offset else [])]
            )
            self.peft.active_adapter = TRAINEE
        for key, parameter in self.peft.named_parameters():
            parameter.requires_grad_(gradient_flags.get(key, False))

    def _copy_tensors(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Copies tensors into an adapter after comparing names and shapes.

        Args:
            name: peft's name of the adapter.
            tensors: keys as in peft's file format.

        Raises:
            AdapterError: names or shapes differ; the adapter is deleted from the model.
        """
        assert self.peft is not None
        expected = get_peft_model_state_dict(self.peft, adapter_name=name, save_embedding_layers=False)
        if {k: tuple(v.shape) for k, v in expected.items()} != {
            k: tuple(v.shape) for k, v in tensors.items()
        }:
            self._delete_adapter(name)
            raise AdapterError(
                f"The tensors of {name!r} do not fit the base {self.base.name!r}.",
                "Choose an adapter that was trained on this base.",
            )
        set_peft_model_state_dict(self.peft, tensors, adapter_name=name)

    def _unload(self, adapter_id: str) -> None:
        self._delete_adapter(adapter_id)
        self.digests.pop(adapter_id, None)
        self._stop_ids.pop(adapter_id, None)

    def _delete_adapter(self, name: str) -> None:
        assert self.peft is not None
        self.mixer.gains.pop(name, None)
        self.mixer.own_weights.pop(name, None)
        self.calibrations.pop(name, None)
        if len(self.peft.peft_config) > 1:
            before = self._gradient_flags()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.peft.delete_adapter(name)
            self._restore_training_state(before)
        else:  # a PeftModel needs at least one adapter, so the base is unwrapped
            self.base.model = self.peft.unload()
            self.peft = None
            self.mixer.model = self.base.model

    def unload(self, adapter_id: str) -> None:
        """Unloads an adapter whose files are being deleted or have changed; does nothing if it is not loaded.

        Raises:
            Busy: it is a parent of the adapter in training.
        """
        if adapter_id in self.parent_ids:
            raise Busy(f"The adapter {adapter_id!r} is in use by a run.", "Stop the run first.")
        if adapter_id in self.digests:
            self._unload(adapter_id)
            self.update_layout()

    def add_trainee(
        self, adapter_id: str, config: dict[str, Any], stack_on: str = "", initialisation: str = "default"
    ) -> None:
        """Adds a new trainable adapter, stacked on a frozen active parent adapter if there is one.

        Args:
            adapter_id: the library id that the adapter will have; mixes can use it at once.
            config: fields of a LoraConfig.
            stack_on: the library id of the parent adapter, or "".
            initialisation: its first weights, one of `core.spec.training.INITIALISATIONS`.

        Raises:
            SpecError: the initialisation is not possible on this base.
            AdapterError: the parent adapter is not plain LoRA.
        """
        if stack_on:
            adapters.check_parent(adapters.load(self.workspace, stack_on))
        if adapter_id in self.digests:  # saved earlier by this run, which now resumes from a checkpoint
            self._unload(adapter_id)
        if stack_on:
            self.load_adapters([Mix(weights={stack_on: 1.0})])
        self.trainee_id = adapter_id
        self.parent_ids = {stack_on} if stack_on else set()
        self.trainee_unmixable_reason = DORA_IN_TRAINING if config.get("use_dora") else ""
        self.add_adapter(TRAINEE, config, trainable=True)
        if initialisation in lora_init.OFFSET_INITIALISATIONS:
            # Without dropout, because the offset is subtracted in every pass.
            self.add_adapter(OFFSET, {**config, "lora_dropout": 0.0})
            self._restore_training_state(self._gradient_flags())
            lora_init.offset_init(self.base.model, TRAINEE, OFFSET, initialisation)
        elif initialisation == "loftq":
            if self.base.quantization != "nf4":
                raise SpecError(
                    f"LoftQ needs a base in nf4, and {self.base.name!r} is not quantized to nf4.",
                    "Choose another initialisation, or load the base in nf4.",
                )
            lora_init.loftq_init(
                self.base.model, TRAINEE, folder_of(*locate(self.base.name)), self.base.family.fan_in_fan_out
            )
        self.update_layout()

    def add_saved_adapter(
        self, adapter: Adapter, config: dict[str, Any], tensors: dict[str, torch.Tensor]
    ) -> None:
        """Loads a newly saved adapter from memory, so that the next mix does not read its files.

        Args:
            adapter: the library's record.
            config, tensors: the contents of its two files.
        """
        self._add_library_adapter(adapter, parse_config(config, only_plain=False), tensors)
        self.digests[adapter.id] = adapter.sha256

    def remove_trainee(self) -> None:
        """Removes the adapter in training and its offset; `add_saved_adapter` loads what was saved."""
        self.trainee_id = ""
        for name in (OFFSET, TRAINEE):
            if self.peft is not None and name in self.peft.peft_config:
                self._delete_adapter(name)
        self.trainee_unmixable_reason = ""
        self.parent_ids = set()
        self.update_layout()
        self.base.model.requires_grad_(False)

    def export_trainee(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Returns the adapter in training as the library saves it: (state dict, config).

        PiSSA and OLoRA are converted to plain LoRA of twice the rank.
        """
        tensors, config = self.trainee_state_dict(), self.adapter_config()
        if not self.has_offset:
            return tensors, config
        offset = self.full_state_dict(OFFSET)
        return lora_init.to_plain_lora(tensors, offset), lora_init.to_plain_config(config)

    def trainee_state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the adapter in training as `full_state_dict`."""
        return self.full_state_dict(TRAINEE)

    def full_state_dict(self, name: str) -> dict[str, torch.Tensor]:
        """Returns an adapter's tensors, in fp32 on the CPU, under the keys of peft's file format.

        With FSDP the tensors are gathered, so all ranks must call this.

        Args:
            name: peft's name of the adapter.
        """
        full = {
            k: v.full_tensor() if isinstance(v, DTensor) else v
            for k, v in self.local_state_dict(name).items()
        }
        return {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in full.items()}

    def local_state_dict(self, name: str) -> dict[str, torch.Tensor]:
        """Returns an adapter's tensors as they are: on their device, and sharded with FSDP.

        Args:
            name: peft's name of the adapter.
        """
        assert self.peft is not None
        state: dict[str, torch.Tensor] = get_peft_model_state_dict(
            self.peft, adapter_name=name, save_embedding_layers=False
        )
        return state

    def restore_trainee(
        self, tensors: dict[str, torch.Tensor], offset: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Loads a checkpoint's tensors into the adapter in training, and into its offset if there is one.

        Raises:
            AdapterError: names or shapes do not fit.
        """
        self._copy_tensors(TRAINEE, tensors)
        if offset is not None:
            self._copy_tensors(OFFSET, offset)

    def adapter_config(self) -> dict[str, Any]:
        """Returns the adapter config of the adapter in training, as plain JSON values."""
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
