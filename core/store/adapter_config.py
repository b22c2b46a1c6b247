"""The allow-list of LoRA settings: the fields of an adapter_config.json, and what makes an adapter unmixable.

Two forms are more than a product of two factors, and can be mixed in a way of their own: DoRA, and adapters
with weights of their own (a trained embedding, head, norm or token), which are used alone.

A config can come from anywhere. Module lists are plain names and never regular expressions, because a regular
expression can block the loader. Unknown fields are dropped, and the base model that a config names is never
loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.errors import AdapterError

FILE = "adapter_config.json"
MODULE_NAME = re.compile(r"[A-Za-z0-9_.-]+")
RANK_LIMIT = 1024
ALPHA_LIMIT = 65536
LIST_LIMIT = 4096  # names in one list
SHOWN = 4  # names in a sentence
TOKEN_LIMIT = 1 << 20  # trained tokens of one module
REQUIRED = ("peft_type", "r", "lora_alpha", "target_modules")


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= RANK_LIMIT


def _is_alpha(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= ALPHA_LIMIT


def _is_name_list(value: Any) -> bool:
    """Whether a value is a list of plain names, which cannot block the loader as regular expressions."""
    return (
        isinstance(value, (list, tuple))
        and len(value) <= LIST_LIMIT
        and all(isinstance(m, str) and MODULE_NAME.fullmatch(m) for m in value)
    )


def _is_table(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and _is_name_list([*value]) and all(is_valid(v) for v in value.values())


def _is_token_table(value: Any) -> bool:
    """Whether a value maps names of modules to lists of different token ids."""
    return (
        isinstance(value, dict)
        and _is_name_list([*value])
        and all(
            isinstance(ids, list)
            and 0 < len(ids) <= TOKEN_LIMIT
            and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
            and len(set(ids)) == len(ids)
            for ids in value.values()
        )
    )


@dataclass(frozen=True)
class Field:
    """A field that is read, and the only values that are accepted.

    Attributes:
        allowed: the accepted values in words, as they follow "must be".
    """

    is_valid: Callable[[Any], bool]
    allowed: str


_NAMES = f"a list of at most {LIST_LIMIT} module names"
_FLAG = Field(lambda v: isinstance(v, bool), "true or false")
ALLOWED: dict[str, Field] = {
    "peft_type": Field(lambda v: v == "LORA", '"LORA"'),
    "task_type": Field(
        lambda v: v in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"), '"CAUSAL_LM", "SEQ_2_SEQ_LM" or null'
    ),
    "r": Field(_is_rank, f"a whole number from 1 to {RANK_LIMIT}"),
    "lora_alpha": Field(_is_alpha, f"a number above 0 and at most {ALPHA_LIMIT}"),
    "lora_dropout": Field(lambda v: isinstance(v, (int, float)) and 0 <= v < 1, "a number from 0 to below 1"),
    "target_modules": Field(_is_name_list, _NAMES),
    "target_parameters": Field(lambda v: v is None or _is_name_list(v), f"{_NAMES}, or null"),
    "rank_pattern": Field(lambda v: not v or _is_table(v, _is_rank), "a mapping of module names to ranks"),
    "alpha_pattern": Field(lambda v: not v or _is_table(v, _is_alpha), "a mapping of module names to alphas"),
    "bias": Field(lambda v: v in (None, "none"), '"none" or null'),
    "use_rslora": _FLAG,
    "use_dora": _FLAG,
    "fan_in_fan_out": _FLAG,
    "modules_to_save": Field(lambda v: not v or _is_name_list(v), f"{_NAMES}, or null"),
    "trainable_token_indices": Field(
        lambda v: not v or _is_token_table(v), "a mapping of module names to lists of token ids, or null"
    ),
}


@dataclass(frozen=True)
class Obstacle:
    """A setting with which an adapter cannot be mixed.

    The update of such an adapter is more than a product of two low-rank factors.

    Attributes:
        is_harmless: whether a value of the setting changes nothing.
        reason: why the adapter cannot be mixed, as a clause.
        fix: what the user can do, as a sentence.
    """

    is_harmless: Callable[[Any], bool]
    reason: str
    fix: str


RETRAIN = "Train it again without this setting, or convert it to plain LoRA with the tool that made it."
COPIES = Obstacle(
    lambda v: not v,
    "it contains trained copies of embedding or head weights, which replace those of the base",
    "Use it alone, at weight 1; or import it again with the repair drop-copies, which keeps its plain part.",
)
VARIANT = Obstacle(lambda v: not v, "its update is not the plain product of two low-rank factors", RETRAIN)
SOME_LAYERS = Obstacle(
    lambda v: v is None or v == [],
    "it selects layers by rules instead of by name",
    "List the full names of its layers in target_modules.",
)
UNMIXABLE: dict[str, Obstacle] = {
    "modules_to_save": COPIES,
    "trainable_token_indices": COPIES,
    "init_lora_weights": Obstacle(
        lambda v: v in (None, True, False, "gaussian", "eva", "orthogonal", "mica"),
        "this initialisation was subtracted from the base weights, so it fits only that changed base",
        "Convert it to plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
    ),
    "bias": Obstacle(
        lambda v: v in (None, "none"),
        "it trains biases of the base, which cannot be weighted per row of a batch",
        RETRAIN,
    ),
    "lora_bias": Obstacle(lambda v: not v, "it trains biases beside the low-rank factors", RETRAIN),
    "use_dora": Obstacle(
        lambda v: not v,
        "DoRA rescales the base weights, which is not a product of two factors",
        "Mix it live; or import it again with the repair convert-dora, which makes plain LoRA of it.",
    ),
    "use_qalora": VARIANT,
    "use_bdlora": VARIANT,
    "alora_invocation_tokens": VARIANT,
    "arrow_config": VARIANT,
    "kasa_config": VARIANT,
    "velora_config": VARIANT,
    "monteclora_config": VARIANT,
    "megatron_config": VARIANT,
    "layers_to_transform": SOME_LAYERS,
    "exclude_modules": SOME_LAYERS,
    "layer_replication": Obstacle(lambda v: not v, "it changes the number of layers of the base", RETRAIN),
}


# Settings whose adapters are mixed in a way of their own, and what they are called.
OWN_FORMS = {
    "use_dora": "a DoRA adapter",
    "modules_to_save": "an adapter with trained weights of its own",
    "trainable_token_indices": "an adapter with trained tokens",
}
ALONE = (
    "it replaces weights of the base ({names}), so it is used alone: at weight 1, with no other adapter in "
    "its column"
)


def parse_config(raw: dict[str, Any], only_plain: bool = True) -> dict[str, Any]:
    """The allowed fields of an adapter_config.json, each of them checked.

    Args:
        only_plain: False also accepts adapters that are more than products of two factors (`OWN_FORMS`).

    Raises:
        AdapterError: a required field is missing, or a value is not allowed or cannot be mixed.
    """
    for name in REQUIRED:
        if name not in raw:
            raise AdapterError(f"{FILE} has no field {name!r}.", "Use a LoRA adapter that peft saved.")
    check_mixable({k: v for k, v in raw.items() if only_plain or k not in OWN_FORMS})
    config = {name: raw[name] for name in ALLOWED if name in raw}
    for name, value in config.items():
        if not ALLOWED[name].is_valid(value):
            raise AdapterError(
                f"{FILE}: {name} must be {ALLOWED[name].allowed}, got {_format(value)}.",
                "Convert the adapter to plain LoRA with lists of module names.",
            )
    if not config["target_modules"] and not config.get("target_parameters"):
        raise AdapterError(f"{FILE}: target_modules is empty.", "Use a LoRA adapter that names its layers.")
    return config


def check_mixable(raw: dict[str, Any]) -> None:
    """Checks that an adapter with this config can be mixed as products of two factors.

    Raises:
        AdapterError: it cannot; the message names the setting and the reason.
    """
    for name, obstacle in UNMIXABLE.items():
        if name in raw and not obstacle.is_harmless(raw[name]):
            what = "is not plain LoRA" if name in OWN_FORMS else "cannot be mixed"
            raise AdapterError(
                f"The adapter {what} because {name} is {_format(raw[name])}: {obstacle.reason}.",
                obstacle.fix,
            )


def describe_own_weights(config: dict[str, Any]) -> str:
    """Why an adapter can only be used alone, as a clause; "" where it is mixed like others.

    Args:
        config: as `parse_config` returns it.
    """
    names = [*(config.get("modules_to_save") or ()), *(config.get("trainable_token_indices") or ())]
    short = dict.fromkeys(name.rsplit(".", 1)[-1] for name in names)
    return ALONE.format(names=", ".join([*short][:SHOWN])) if names else ""


def _format(value: Any) -> str:
    return json.dumps(value, default=str)[:120]
