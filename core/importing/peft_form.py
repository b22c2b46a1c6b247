"""The tensors of a PEFT file by layer, and the alpha of each layer. Names of any version of peft are read.

base_model.model.<layer>.lora_A.weight               saved by peft
base_model.model.<layer>.lora_A.<adapter>.weight     a state dict that was saved without peft
module. _orig_mod. _fsdp_wrapped_module.             left by launchers and compilers
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from core.importing.tensors import StoredTensor
from core.store.adapter_config import MODULE_NAME

PREFIX = "base_model.model."
DEFAULT_ALPHA = 8  # of peft, where a config names none
LAUNCHER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
MARKS = {
    "lora_A": "A",
    "lora_B": "B",
    "lora_magnitude_vector": "magnitude",
    "lora_embedding_A": "embedding",
    "lora_embedding_B": "embedding",
}
# A rule of alpha_pattern that is not a plain name: no repetition of a group, and few repetitions in all, so
# that matching it takes microseconds.
RULE_LIMIT = 1000  # characters
REPETITION_LIMIT = 3
_RULE = re.compile(r"[\w.\\|()?:^$\[\]*+-]+")


@dataclass(frozen=True)
class Extra:
    """A tensor that is not a low-rank factor.

    Attributes:
        layer: the name of its layer, as the file has it.
        kind: "copy" (trained weights of a layer), "base" (weights of the base that peft saved too), "bias",
            "lora_bias", "embedding" (factors of an embedding), "tokens" (single trained tokens), or
            "unknown".
    """

    layer: str
    kind: str
    tensor: StoredTensor


@dataclass
class PeftTensors:
    """The tensors of a PEFT file.

    Attributes:
        layers: layer -> "A", "B" and "magnitude" -> tensor.
    """

    layers: dict[str, dict[str, StoredTensor]] = field(default_factory=dict)
    _extras: list[Extra] = field(default_factory=list)

    @property
    def extras(self) -> tuple[Extra, ...]:
        """Everything else."""
        return tuple(self._extras)


def read(tensors: dict[str, StoredTensor]) -> PeftTensors:
    """Sorts the tensors of a file by layer."""
    parsed = PeftTensors()
    for name, tensor in tensors.items():
        layer, kind = parse_name(name)
        is_matrix = len(tensor.shape) == (1 if kind == "magnitude" else 2)
        if kind in ("A", "B", "magnitude") and is_matrix and kind not in parsed.layers.get(layer, {}):
            parsed.layers.setdefault(layer, {})[kind] = tensor
        else:
            parsed._extras.append(Extra(layer, kind if kind not in ("A", "B") else "unknown", tensor))
    return parsed


def parse_name(name: str) -> tuple[str, str]:
    """(layer, kind) of a tensor; the kinds are those of `MARKS` and of `Extra`."""
    parts = [p for p in name.split(".") if p not in LAUNCHER_PARTS]
    if parts[:1] == ["module"]:
        del parts[0]
    if parts[:2] == ["base_model", "model"]:
        del parts[:2]
    mark = next((i for i, p in enumerate(parts) if p in MARKS), None)
    if mark is not None:
        layer = ".".join(parts[:mark])
        return layer, "lora_bias" if parts[-1] == "bias" else MARKS[parts[mark]]
    for part, kind in (
        ("modules_to_save", "copy"),
        ("original_module", "base"),
        ("base_layer", "base"),
        ("token_adapter", "tokens"),
        ("trainable_tokens_delta", "tokens"),
        ("trainable_tokens_original", "base"),
    ):
        if part in parts:
            return ".".join(parts[: parts.index(part)]), kind
    return ".".join(parts[:-1]), {"weight": "copy", "bias": "bias"}.get(parts[-1], "unknown")


def alpha_of(config: dict[str, Any], layer: str) -> float | None:
    """The alpha of a layer: that of the first rule of `alpha_pattern` that names it, else the common one.

    Returns:
        None where the adapter has no configuration, or the value is not a number.
    """
    if not config:
        return None
    value: Any = config.get("lora_alpha", DEFAULT_ALPHA)
    patterns = config.get("alpha_pattern")
    if isinstance(patterns, dict):
        rule = next((key for key in patterns if matches_rule(key, layer)), None)
        value = patterns[rule] if rule is not None else value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else None


def matches_rule(rule: str, layer: str) -> bool:
    """Whether a rule of a pattern names a layer, as peft decides it; a rule that is not safe names none."""
    if MODULE_NAME.fullmatch(rule):
        return f".{layer}".endswith(f".{rule}")
    if not is_safe_rule(rule):
        return False
    return re.match(rf"(?:.*\.)?(?:{rule})$", layer) is not None


def is_safe_rule(rule: str) -> bool:
    """Whether a rule is a plain name, or a regular expression that takes microseconds."""
    if MODULE_NAME.fullmatch(rule):
        return True
    if len(rule) > RULE_LIMIT or not _RULE.fullmatch(rule) or "(?" in rule.replace("(?:", "("):
        return False
    bare = rule.replace("(?:", "(").replace("\\", "")
    if re.search(r"\)[*+?{]", bare) or sum(bare.count(c) for c in "*+") > REPETITION_LIMIT:
        return False
    try:
        re.compile(rule)
    except (re.error, OverflowError):
        return False
    return True


def list_unsafe_rules(config: dict[str, Any]) -> list[str]:
    """The rules of `alpha_pattern` that cannot be read."""
    patterns = config.get("alpha_pattern")
    if not patterns:
        return []
    rules: Iterable[Any] = patterns if isinstance(patterns, dict) else [patterns]
    return [str(r) for r in rules if not isinstance(r, str) or not is_safe_rule(r)]
