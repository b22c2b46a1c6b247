"""The settings files of a merged model: what older and newer runtimes read, and what the studio answers with.

transformers 5 keeps `rope_theta` inside `rope_parameters`; transformers 4 and mlx-lm read it beside
`rope_scaling`, and take 10000 without a word where it is missing. Both spellings are written.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer

from core.errors import BaseModelError
from core.export.base_layout import BaseLayout
from core.model.token_ids import read_ids

FULL, WINDOW = "full_attention", "sliding_attention"  # the kinds of layers with rotary settings of their own
# What names code, or a path of the machine that the base was made on.
DROPPED = ("auto_map", "_name_or_path", "name_or_path", "custom_pipelines")
# Names of transformers 5 that version 4 does not have -> names that both have.
NEW_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
OWN_KEYS = ("rope_theta", "partial_rotary_factor")  # beside rope_scaling in the old spelling


def complete_config(raw: dict[str, Any], config: Any, dtype: str) -> dict[str, Any]:
    """The config.json of a merged model.

    Args:
        raw: the content of the base's config.json, perhaps changed.
        config: of transformers, made from the same file.
        dtype: of the weights, such as "bfloat16".
    """
    full = {k: v for k, v in copy.deepcopy(raw).items() if k not in DROPPED}
    full |= {"dtype": dtype, "torch_dtype": dtype}
    parts = [(full, config)]
    if isinstance(full.get("text_config"), dict):
        parts.append((full["text_config"], getattr(config, "text_config", None)))
    for part, settings in parts:
        rotary = getattr(settings, "rope_parameters", None)
        if isinstance(rotary, dict) and rotary:
            spelled = {**part, **_spell_rotary(part, rotary)}
            # transformers 5 prefers the old spelling of a scaling, which cannot say everything.
            if not _means(spelled, settings):
                spelled.pop("rope_scaling")
            part.update(spelled)
    return full


def _means(raw: dict[str, Any], config: Any) -> bool:
    """Whether a config.json has the rotary settings of a config."""
    again = type(config).from_dict(copy.deepcopy(raw)).rope_parameters  # it changes what it is given
    return bool(_simplify(again) == _simplify(config.rope_parameters))


def _simplify(rotary: Any) -> Any:
    """Rotary settings without the old name of the type, and without entries that say nothing."""
    if not isinstance(rotary, dict):
        return rotary
    return {k: _simplify(v) for k, v in rotary.items() if k != "type" and v is not None}


def _spell_rotary(raw: dict[str, Any], rotary: dict[str, Any]) -> dict[str, Any]:
    """Both spellings of the rotary settings; what the file has already in the old one stays.

    Args:
        rotary: `rope_parameters` of transformers 5: flat, or one for each kind of layer.
    """
    if isinstance(rotary.get(FULL), dict):
        main, window = rotary[FULL], rotary.get(WINDOW) or {}
        old = {"rope_theta": main.get("rope_theta"), "rope_scaling": _spell_scale(raw, main)}
        if "rope_theta" in window:
            old["rope_local_base_freq"] = window["rope_theta"]
    else:
        old = {key: rotary[key] for key in OWN_KEYS if key in rotary}
        old["rope_scaling"] = _spell_scale(raw, rotary)
    new = {k: v for k, v in old.items() if v is not None or k == "rope_scaling"}
    kept = {k: raw[k] for k in new if raw.get(k) is not None}
    return {**new, **kept, "rope_parameters": rotary}


def _spell_scale(raw: dict[str, Any], rotary: dict[str, Any]) -> dict[str, Any] | None:
    """`rope_scaling` of transformers 4; None for rotary embeddings without one."""
    kind = rotary.get("rope_type", "default")
    if kind == "default":
        return None
    if kind == "longrope" and raw.get("model_type") == "phi3":  # which takes these three fields only
        return {"type": kind, **{k: rotary[k] for k in ("short_factor", "long_factor") if k in rotary}}
    return {"type": kind, **{k: v for k, v in rotary.items() if k not in OWN_KEYS}}


@dataclass(frozen=True)
class CompletedTokenizer:
    """The tokenizer of a merged model.

    Attributes:
        config: the content of tokenizer_config.json.
        template: the chat template to write beside it; "" where the base has its own.
        tokenizer: of transformers.
    """

    config: dict[str, Any]
    template: str
    tokenizer: Any


def complete_tokenizer_config(
    layout: BaseLayout, raw: dict[str, Any], has_template: bool
) -> CompletedTokenizer:
    """Gives the tokenizer the chat template that the studio answers with, where the base has none.

    Args:
        raw: the content of the base's tokenizer_config.json.
        has_template: whether a file beside it holds the template.

    Raises:
        BaseModelError: the tokenizer cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            layout.folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as e:  # whatever a damaged file makes the library raise
        text = f"{type(e).__name__}: {e}".split("\n")[0][:200]
        raise BaseModelError(
            f"The tokenizer of {layout.name!r} cannot be read ({text}).", "Copy or download the base again."
        ) from e
    config = _spell_tokenizer({k: v for k, v in raw.items() if k not in DROPPED})
    template = ""
    if not tokenizer.chat_template and not has_template and not raw.get("chat_template"):
        template = layout.family.template_for(tokenizer)
    return CompletedTokenizer(config, template, tokenizer)


def _spell_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json in the words of transformers 4, which version 5 reads, too."""
    if config.get("tokenizer_class") in NEW_CLASSES:
        config["tokenizer_class"] = NEW_CLASSES[config["tokenizer_class"]]
    if isinstance(config.get("extra_special_tokens"), list):
        extra = config.pop("extra_special_tokens")
        config.setdefault("additional_special_tokens", extra)
    return config


def complete_generation(
    raw: dict[str, Any], config: Any, tokenizer: Any, stop_tokens: Sequence[str]
) -> dict[str, Any]:
    """The generation_config.json: every token that ends an answer in the studio ends it elsewhere, too.

    Args:
        raw: that of the base, or {}.
        config: of transformers.
        stop_tokens: texts of further tokens.
    """
    full = {k: v for k, v in raw.items() if k not in DROPPED}
    ids = _ids_in(raw.get("eos_token_id")) or read_ids(config, "eos_token_id")
    known = tokenizer.get_vocab()
    own = read_ids(tokenizer, "eos_token_id")
    ends = sorted({*ids, *own, *(known[t] for t in stop_tokens if t in known)})
    if ends:
        full["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    for key in ("bos_token_id", "pad_token_id", "decoder_start_token_id"):
        found = read_ids(config, key)
        if full.get(key) is None and found:
            full[key] = found[0]
    return full


def _ids_in(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
