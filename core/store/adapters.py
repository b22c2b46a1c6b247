"""Adapters on disk: writing, listing and checking them.

Knows the PEFT layout, provenance and what makes an adapter file unfit. Knows nothing of models in
memory: whether an adapter fits the resident base is asked by fingerprint and by shapes.
"""

from __future__ import annotations

import json
import math
import re
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import AdapterError
from core.store.workspace import Workspace, check_name, read_json, sha256_of, atomic_write, write_json

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
METADATA = "EXPERIMENT_METADATA.json"
CHECKSUMS = "checksums.txt"
FORMAT = 1
MODULE = re.compile(r"[A-Za-z0-9_.-]+")
RANK_LIMIT = 1024
LIST_LIMIT = 4096  # names in a config
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".py", ".ckpt")
# The fields of a LoraConfig that we read, with the only kinds of value that we accept.
ALLOWED: dict[str, Callable[[Any], bool]] = {
    "peft_type": lambda v: v == "LORA",
    "task_type": lambda v: v in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"),
    "r": lambda v: _is_rank(v),
    "lora_alpha": lambda v: _is_alpha(v),
    "lora_dropout": lambda v: isinstance(v, (int, float)) and 0 <= v < 1,
    "target_modules": lambda v: _are_names(v),
    "target_parameters": lambda v: v is None or _are_names(v),
    "rank_pattern": lambda v: not v or _is_table(v, _is_rank),
    "alpha_pattern": lambda v: not v or _is_table(v, _is_alpha),
    "bias": lambda v: v in (None, "none"),
    "use_rslora": lambda v: isinstance(v, bool),
    "use_dora": lambda v: isinstance(v, bool),
    "fan_in_fan_out": lambda v: isinstance(v, bool),
}
MAGNITUDE = "lora_magnitude_vector"  # DoRA's own tensor, one number an output
NEEDED = ("peft_type", "r", "lora_alpha", "target_modules")


@dataclass(frozen=True)
class Reason:
    """Why an adapter is more than products of two factors beside frozen weights, and cannot be mixed.

    Attributes:
        harmless: says of a field's value that it is none of our concern.
    """

    harmless: Callable[[Any], bool]
    why: str
    fix: str


RETRAIN = "Train it again without that, or bake it into a plain LoRA adapter with the tool that made it."
COPIES = Reason(
    lambda v: not v,
    "it brings trained copies of embeddings or of a head, which replace the base's own instead of adding to them",
    RETRAIN,
)
VARIANT = Reason(lambda v: not v, "what it adds is not the plain product of two factors", RETRAIN)
SOME_LAYERS = Reason(
    lambda v: v is None or v == [],
    "it picks layers by rules instead of naming them",
    "Write the full names of its layers into target_modules.",
)
UNMIXABLE: dict[str, Reason] = {
    "modules_to_save": COPIES,
    "trainable_token_indices": COPIES,
    "init_lora_weights": Reason(
        lambda v: v in (None, True, False, "gaussian", "eva", "orthogonal", "mica"),
        "such a start is taken out of the base's weights, so that it belongs to a base changed in the same way",
        "Convert it to plain LoRA first: save_pretrained(..., path_initial_model_for_weight_conversion=...) of peft.",
    ),
    "bias": Reason(lambda v: v in (None, "none"), "it trains biases of the base, which cannot be weighed row by row", RETRAIN),
    "lora_bias": Reason(lambda v: not v, "it trains biases beside the factors", RETRAIN),
    "use_dora": Reason(lambda v: not v, "DoRA rescales the base's own weights, a different one for every mix", RETRAIN),
    "use_qalora": VARIANT, "use_bdlora": VARIANT, "alora_invocation_tokens": VARIANT, "arrow_config": VARIANT,
    "kasa_config": VARIANT, "velora_config": VARIANT, "monteclora_config": VARIANT, "megatron_config": VARIANT,
    "layers_to_transform": SOME_LAYERS,
    "exclude_modules": SOME_LAYERS,
    "layer_replication": Reason(lambda v: not v, "it changes the number of the base's layers", RETRAIN),
}  # fmt: skip
# What a tensor that is no factor tells of its adapter, by a part of its name.
STRANGERS = {
    "lora_magnitude_vector": UNMIXABLE["use_dora"],
    "lora_embedding_": COPIES,
    "token_adapter": COPIES,
    "lora_B.bias": UNMIXABLE["lora_bias"],
    "embed_tokens.weight": COPIES,
    "lm_head.weight": COPIES,
    "modules_to_save": COPIES,
}


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= RANK_LIMIT


def _is_alpha(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 65536


def _are_names(value: Any) -> bool:
    """Plain names; peft reads them as ends of a path, or as regular expressions in which nothing can hang."""
    return (
        isinstance(value, (list, tuple))
        and len(value) <= LIST_LIMIT
        and all(isinstance(m, str) and MODULE.fullmatch(m) for m in value)
    )


def _is_table(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and _are_names([*value]) and all(fits(v) for v in value.values())


@dataclass(frozen=True)
class Adapter:
    """An adapter of the library, as its metadata tells."""

    id: str
    name: str
    kind: str
    base: str
    base_fingerprint: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    sha256: str
    bytes: int
    created: float
    dataset: str = ""
    dataset_name: str = ""
    run: str = ""
    stacked_on: str = ""
    unmixable: str = ""  # why it cannot be mixed live
    results: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def training_data(self) -> frozenset[str]:
        """Ids and sha256 sums of all data that its numbers come from: its own, what was replayed, and what the parts of a baked one learned from."""
        settings, data = self.metadata.get("hyperparameters") or {}, self.metadata.get("dataset") or {}
        replayed = settings.get("replay_dataset") if settings.get("replay_share") else ""
        own = {str(x) for x in (self.dataset, replayed, data.get("sha256")) if x}
        return frozenset(own | {str(x) for x in self.metadata.get("learned_from") or ()})


def parse_config(raw: dict[str, Any], mixed: bool = True) -> dict[str, Any]:
    """The fields of an adapter_config.json that we trust, checked one by one.

    Args:
        mixed: it is to be mixed; what can only be kept and loaded elsewhere (DoRA) is refused as well.

    Module lists are plain names, never regular expressions, because one can hang the loader; unknown
    fields are dropped, and the base named inside is not followed.

    Raises:
        AdapterError: a needed field is missing, or a value is of a kind that cannot be mixed or trusted.
    """
    for name in NEEDED:
        if name not in raw:
            raise AdapterError(f"{CONFIG} has no {name!r}.", "Give a LoRA adapter saved by peft.")
    refuse_unmixable({k: v for k, v in raw.items() if mixed or k != "use_dora"})
    clean = {}
    for name, fits in ALLOWED.items():
        if name in raw:
            if not fits(raw[name]):
                raise AdapterError(
                    f"{CONFIG}: {name} is {_shown(raw[name])}.",
                    "Only plain LoRA adapters with lists of module names can be used here; convert it first.",
                )
            clean[name] = raw[name]
    if not clean["target_modules"] and not clean.get("target_parameters"):
        raise AdapterError(
            f"{CONFIG}: target_modules is empty.", "Give a LoRA adapter that names its layers."
        )
    return clean


def refuse_unmixable(raw: dict[str, Any]) -> None:
    """Says why an adapter cannot be mixed in rank space, by the name of the setting that makes it so.

    Raises:
        AdapterError: a field of its config has a value that is not harmless.
    """
    for name, reason in UNMIXABLE.items():
        if name in raw and not reason.harmless(raw[name]):
            raise AdapterError(
                f"The adapter cannot be mixed: {name} is {_shown(raw[name])}, and {reason.why}.", reason.fix
            )


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:120]


def add(
    workspace: Workspace,
    adapter_id: str,
    name: str,
    write_weights: Callable[[Path], None],
    config: dict[str, Any],
    metadata: dict[str, Any],
) -> Adapter:
    """Puts a trained adapter into the library; it appears whole, or not at all.

    Args:
        adapter_id: the id promised at the start of the run.
        write_weights: writes the safetensors file at the path it is given.
        config: fields of a LoraConfig.
        metadata: provenance; `name`, `id`, `sha256` are filled in here.

    Raises:
        AdapterError: the weights are not fit to be kept.
        StorageError: the disk refused.
    """
    workspace.clear_partial("adapters", adapter_id)  # the id is promised to one run, and one process owns it
    _, place = workspace.new_dir("adapters", name, adapter_id)
    write_weights(place / WEIGHTS)
    write_json(place / CONFIG, config)
    check_weights(place, parse_config(config, mixed=False))
    digest = sha256_of(place / WEIGHTS)
    full = {
        "format": FORMAT,
        "id": adapter_id,
        "name": check_name(name),
        "sha256": digest,
        "created": time.time(),
        **metadata,
    }
    write_json(place / METADATA, full)
    with atomic_write(place / "README.md", "w") as f:
        f.write(model_card(full, config))
    _write_checksums(place)
    if workspace.path(
        "adapters", adapter_id
    ).exists():  # a stopped run that went on: its newer state replaces the older
        workspace.remove("adapters", adapter_id)
    workspace.commit_dir("adapters", adapter_id, place)
    return load(workspace, adapter_id)


def _write_checksums(folder: Path) -> None:
    names = sorted(
        p.name for p in folder.iterdir() if p.is_file() and p.name != CHECKSUMS and not p.name.startswith(".")
    )
    with atomic_write(folder / CHECKSUMS, "w") as f:
        f.writelines(f"{sha256_of(folder / n)}  {n}\n" for n in names)


def load(workspace: Workspace, adapter_id: str) -> Adapter:
    """Reads what an adapter is.

    Raises:
        NotFound: no such adapter. StorageError: its metadata is damaged.
    """
    folder = workspace.find("adapters", adapter_id)
    meta, config = read_json(folder / METADATA), read_json(folder / CONFIG)
    base, data = meta.get("base") or {}, meta.get("dataset") or {}
    return Adapter(
        id=adapter_id,
        name=meta.get("name", adapter_id),
        kind=meta.get("kind", "task"),
        base=base.get("name", ""),
        base_fingerprint=base.get("fingerprint", ""),
        rank=int(config.get("r", 0)),
        alpha=float(config.get("lora_alpha", 0)),
        target_modules=tuple(config.get("target_modules", ())),
        sha256=meta.get("sha256", ""),
        bytes=sum(p.stat().st_size for p in folder.iterdir() if p.is_file()),
        created=float(meta.get("created", 0)),
        dataset=data.get("id", ""),
        dataset_name=data.get("name", ""),
        run=meta.get("run", ""),
        stacked_on=(meta.get("stacked_on") or {}).get("id", ""),
        unmixable=UNMIXABLE["use_dora"].why if config.get("use_dora") else "",
        results=meta.get("results", {}),
        metadata=meta,
    )


def rename(workspace: Workspace, adapter_id: str, name: str) -> Adapter:
    """Changes the display name; weights and digest stay."""
    folder = workspace.find("adapters", adapter_id)
    meta = read_json(folder / METADATA)
    meta["name"] = check_name(name)
    write_json(folder / METADATA, meta)
    _write_checksums(folder)
    return load(workspace, adapter_id)


def add_results(
    workspace: Workspace, adapter_id: str, results: dict[str, Any], provenance: dict[str, Any] | None = None
) -> Adapter:
    """Adds figures that were measured after an adapter was saved, and provenance; weights and digest stay."""
    folder = workspace.find("adapters", adapter_id)
    meta = read_json(folder / METADATA)
    meta = {**meta, **(provenance or {}), "results": {**meta.get("results", {}), **results}}
    write_json(folder / METADATA, meta)
    with atomic_write(folder / "README.md", "w") as f:
        f.write(model_card(meta, read_json(folder / CONFIG)))
    _write_checksums(folder)
    return load(workspace, adapter_id)


def verify(workspace: Workspace, adapter_id: str) -> list[str]:
    """Checks an adapter's files; returns what was checked, a sentence each.

    Raises:
        AdapterError: a file changed, is missing, or holds weights that are not fit for use.
    """
    return verify_folder(workspace.find("adapters", adapter_id))


def verify_folder(folder: Path) -> list[str]:
    """As `verify`, of an adapter that is not in the library (yet); the folder has the adapter's id as its name."""
    adapter_id, sums = folder.name, folder / CHECKSUMS
    if not sums.is_file():
        raise AdapterError(
            f"The adapter {adapter_id!r} has no {CHECKSUMS}.",
            "Train it again, or restore the folder from a copy.",
        )
    lines = [line.split("  ", 1) for line in sums.read_text(encoding="utf-8").splitlines() if "  " in line]
    named = {name for _, name in lines}
    for needed in (WEIGHTS, CONFIG, METADATA):
        if needed not in named:
            raise AdapterError(f"{CHECKSUMS} does not list {needed}.", "Restore the folder from a copy.")
    for claimed_digest, name in lines:
        if "/" in name or not (folder / name).is_file() or sha256_of(folder / name) != claimed_digest:
            raise AdapterError(
                f"{name} of the adapter {adapter_id!r} is missing or has changed since it was saved.",
                "Restore it from a copy, or train again.",
            )
    if read_json(folder / METADATA).get("sha256") != {n: d for d, n in lines}[WEIGHTS]:
        raise AdapterError(
            f"{METADATA} of the adapter {adapter_id!r} names other weights than {WEIGHTS}.",
            "Restore the folder from a copy.",
        )
    for file in folder.iterdir():
        if file.suffix in PICKLES:
            raise AdapterError(
                f"The adapter folder holds {file.name}, which could run code.",
                "Delete that file: only safetensors are used.",
            )
    config = parse_config(read_json(folder / CONFIG), mixed=False)
    tensors, numbers = check_weights(folder, config)
    return [
        f"{len(lines)} files have the sha256 they were saved with.",
        f"{tensors} tensors have the names and shapes of rank {config['r']}.",
        f"All {numbers:,} numbers are finite.",
    ]


def check_weights(folder: Path, config: dict[str, Any]) -> tuple[int, int]:
    """Checks key set, shapes and finiteness of an adapter's tensors; returns (tensors, numbers).

    Raises:
        AdapterError: a tensor is missing, foreign, misshapen, or not finite.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    numbers = 0
    pairs: dict[str, set[str]] = {}
    try:
        with safe_open(str(folder / WEIGHTS), framework="pt") as f:
            for key in f.keys():  # noqa: SIM118 (safe_open is no dict)
                tensor = f.get_tensor(key)
                numbers += math.prod(tensor.shape)
                if not bool(torch.isfinite(tensor).all()):
                    raise AdapterError(
                        f"The tensor {key!r} holds NaN or infinite numbers.",
                        "The adapter is unusable: train it again with a lower learning rate.",
                    )
                if config.get("use_dora") and key.endswith(f".{MAGNITUDE}") and tensor.dim() == 1:
                    pairs.setdefault(key.removesuffix(f".{MAGNITUDE}"), set()).add(MAGNITUDE)
                    continue
                module, _, side = key.removesuffix(".weight").rpartition(".")
                rank = _rank_of(module, config)
                shown = (
                    f"The tensor {key!r} of shape {tuple(tensor.shape)} is not a LoRA factor of rank {rank}"
                )
                if reason := next((r for part, r in STRANGERS.items() if part in key), None):
                    raise AdapterError(f"{shown}: {reason.why}.", reason.fix)
                if (
                    side not in ("lora_A", "lora_B")
                    or tensor.dim() != 2
                    or not _holds_rank(tensor.shape[0 if side == "lora_A" else 1], rank, config)
                ):
                    raise AdapterError(f"{shown}.", "Convert the adapter to plain LoRA first.")
                pairs.setdefault(module, set()).add(side)
    except (SafetensorError, OSError) as e:
        raise AdapterError(
            f"{WEIGHTS} cannot be read: {e}.", "Restore it from a copy, or train again."
        ) from e
    sides_each = 3 if config.get("use_dora") else 2
    lonely = sorted(m for m, sides in pairs.items() if len(sides) != sides_each)
    if lonely or not pairs:
        raise AdapterError(
            f"A factor is missing in {lonely[0] if lonely else WEIGHTS}.",
            "Restore the file from a copy, or train again.",
        )
    return sides_each * len(pairs), numbers


def _rank_of(module: str, config: dict[str, Any]) -> int:
    """The rank that a config gives to a module: of the first pattern that is the end of its path, else the common one."""
    patterns: dict[str, int] = config.get("rank_pattern") or {}
    return next(
        (rank for name, rank in patterns.items() if f".{module}".endswith(f".{name}")), int(config["r"])
    )


def _holds_rank(size: int, rank: int, config: dict[str, Any]) -> bool:
    """A factor of experts holds the ranks of all of them; how many there are, only the base knows."""
    return size == rank or bool(config.get("target_parameters")) and size > 0 and size % rank == 0


def export_zip(workspace: Workspace, adapter_id: str) -> Path:
    """Writes the adapter's folder as exports/<id>/<id>.zip and returns its path."""
    folder = workspace.find("adapters", adapter_id)
    target = workspace.path("exports", adapter_id, f"{adapter_id}.zip")
    with atomic_write(target) as f, zipfile.ZipFile(f, "w", zipfile.ZIP_STORED) as z:
        for file in sorted(folder.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                z.write(file, f"{adapter_id}/{file.name}")
    return target


def model_card(meta: dict[str, Any], config: dict[str, Any]) -> str:
    """The README.md of an adapter. User text is quoted as JSON in the front matter and escaped below."""
    base, data, results = meta.get("base") or {}, meta.get("dataset") or {}, meta.get("results") or {}

    def quote(value: Any) -> str:
        return json.dumps(str(value)[:200], ensure_ascii=True)

    def plain(value: Any) -> str:
        return re.sub(r"([\\`*_{}\[\]()#+!|<>~&-])", r"\\\1", str(value)[:200].replace("\n", " "))

    on = (meta.get("stacked_on") or {}).get("name")
    sort = "DoRA, which cannot be mixed live" if config.get("use_dora") else "LoRA"
    lines = [
        "---",
        f"base_model: {quote(base.get('name', ''))}",
        "library_name: peft",
        "tags: [lora, adapter-studio]",
        "---",
        "",
        f"# {plain(meta['name'])}",
        "",
        f"A {meta.get('kind')} adapter ({sort}, rank {config['r']}, alpha {config['lora_alpha']:g}) made with Adapter Studio.",
        "",
        f"- Base model: {plain(base.get('name', ''))} (fingerprint `{base.get('fingerprint', '')[:16]}`)",
        *(
            []
            if meta.get("baked_from")
            else [f"- Dataset: {plain(data.get('name', ''))} (sha256 `{str(data.get('sha256', ''))[:16]}`)"]
        ),
        *[
            f"- Baked from: {plain(p['name'])}, weight {p['weight']:g} (sha256 `{p['sha256'][:16]}`)"
            for p in meta.get("baked_from", ())
        ],
        *(
            [f"- Trained on top of: {plain(on)}, frozen and active; load both to use it as trained"]
            if on
            else []
        ),
        *[
            f"- {plain(k.replace('_', ' '))}: {v:.4g}"
            for k, v in sorted(results.items())
            if isinstance(v, (int, float))
        ],
        "",
        "Load it with `peft.PeftModel.from_pretrained(base, folder)`. Provenance is in EXPERIMENT_METADATA.json.",
        "",
    ]
    return "\n".join(lines)
