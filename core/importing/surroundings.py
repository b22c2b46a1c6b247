"""What surrounds the numbers of a foreign adapter: the base it names, its stop tokens, its prompt form."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from core.importing.findings import Repair
from core.importing.names import list_names
from core.store.base_models import HUB_ID

if TYPE_CHECKING:
    from core.importing.examination import Examination

REMAP = Repair("use-base", "Use it on this base", "The shapes fit; the proof shows whether the answers do.")
ADD_STOP = Repair("add-stop", "Add the stop token", "An answer of a mix with this adapter ends there, too.")
# Parts of names that say how a copy is stored, not which model it is.
STORAGE = re.compile(
    r"[-_.](?:bnb|unsloth|4bit|8bit|gguf|nf4|int8|bf16|fp16|f16|q\d\w*|hf|mlx|awq|gptq)(?=[-_.]|$)"
)
NAME_LIMIT = 120


def check(state: Examination) -> None:
    """Checks the base that is named, the tokenizer and the template beside the adapter."""
    _check_claim(state)
    _check_stop_token(state)
    _check_template(state)
    _check_unused_names(state)
    if names := state.foreign.files.passed_over:
        state.note("other-files", f"Not read: {list_names(names)}.", "An import needs none of them.")


def is_proven(state: Examination) -> bool:
    """Whether the adapter's own record names the fingerprint of the resident base."""
    base = state.foreign.files.record.get("base")
    return isinstance(base, dict) and base.get("fingerprint") == state.base.fingerprint


def _check_claim(state: Examination) -> None:
    """Compares the base that the adapter names with the resident one."""
    record, claimed = state.foreign.files.record.get("base"), state.foreign.claimed_base[:NAME_LIMIT]
    if is_proven(state):
        return
    fingerprint = record.get("fingerprint") if isinstance(record, dict) else ""
    if fingerprint:
        what = f"Its record has the fingerprint of another base ({str(fingerprint)[:12]})."
    elif _is_other_model(claimed, state.base.name):
        what = f"It names the base {claimed!r}, and {state.base.name!r} is loaded."
    elif claimed and not HUB_ID.fullmatch(claimed):
        state.note(
            "claimed-base",
            f"It names the base by a path of the machine where it was trained: {claimed!r}.",
            "The shapes fit; the proof after the import shows whether the base is the right one.",
        )
        return
    else:
        return
    if any(f.id == "other-base" for f in state.findings):
        return
    state.block("claimed-base", what, "On another base of the same shape, answers are usually worse.", REMAP)


def _is_other_model(claimed: str, resident: str) -> bool:
    """Whether two names mean different models; a path may mean any model."""
    if not HUB_ID.fullmatch(claimed) or not HUB_ID.fullmatch(resident):
        return False
    return _simplify(claimed) != _simplify(resident)


def _simplify(name: str) -> str:
    """A model's name without its owner and without how a copy of it is stored."""
    return STORAGE.sub("", name.rsplit("/", 1)[-1].lower())


def read_stop_token(tokenizer: dict[str, Any]) -> str:
    """The text of the stop token in a tokenizer_config.json, or ""."""
    return _text_of(tokenizer.get("eos_token"))


def _text_of(token: Any) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _check_stop_token(state: Examination) -> None:
    stop = read_stop_token(state.foreign.files.tokenizer)
    if not stop or stop in state.base.stop_tokens:
        return
    known = list_names([repr(t) for t in state.base.stop_tokens])
    added = find_added_id(state, stop)
    is_token = stop in state.base.vocabulary_texts or added is not None
    chosen = state.warn(
        "stop-token",
        f"It was trained to end its answers with {stop[:60]!r}; the base ends them with {known}.",
        "Its answers may not end by themselves."
        if is_token
        else "The base has no such token, so its answers may not end by themselves.",
        *([ADD_STOP] if is_token else []),
    )
    if chosen and added is not None:
        state.plan.stop_ids = (added,)


def find_added_id(state: Examination, token: str) -> int | None:
    """The id of a token that the tool added to the vocabulary, where the adapter is used with these rows."""
    rows = max((w["weight"].shape[0] for w in state.plan.own.values() if "weight" in w), default=0)
    added = state.foreign.files.tokenizer.get("added_tokens_decoder")
    for number, entry in added.items() if isinstance(added, dict) else ():
        if _text_of(entry) == token and str(number).isascii() and str(number).isdigit():
            index = int(str(number)[:9])
            return index if state.base.vocabulary <= index < rows else None
    return None


def _check_template(state: Examination) -> None:
    """LLaMA-Factory saves the template of the base, whatever it trained with."""
    template = state.foreign.files.template
    if template and state.base.template and template.strip() != state.base.template.strip():
        state.warn(
            "prompt-form",
            "Its chat template differs from that of the base.",
            "The proof after the import answers in both forms, and shows which of them the adapter prefers.",
        )
    elif state.foreign.tool.startswith("LLaMA-Factory"):
        state.warn(
            "prompt-form",
            "LLaMA-Factory saves the chat template of the base, whatever template it trained with.",
            "The proof after the import tries several forms, and shows which of them the adapter prefers.",
        )


def _check_unused_names(state: Examination) -> None:
    targets = state.foreign.settings.get("target_modules")
    if not isinstance(targets, list):
        return
    unused = [
        t for t in targets
        if isinstance(t, str) and not any(f".{m}".endswith(f".{t}") for m in state.foreign.factors)
    ]  # fmt: skip
    if unused and state.foreign.factors:
        state.note(
            "unused-names", f"No tensor belongs to {list_names(unused)} of its target_modules.",
            "The names of its layers are taken from the tensors.",
        )  # fmt: skip
