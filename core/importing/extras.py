"""The tensors of a foreign adapter that are not low-rank factors: copies of the base go, others are named.

Trained embeddings, heads, norms and single tokens replace weights of the base. They cannot be weighed in a
mix, but they can be used alone (`core.model.own_weights`), or left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from core.importing.findings import Repair
from core.importing.names import list_names
from core.importing.peft_form import Extra
from core.store.adapter_weights import TOKENS

if TYPE_CHECKING:
    from core.importing.examination import Examination

DROP_COPIES = Repair(
    "drop-copies", "Import the LoRA part alone", "The trained copies stay out, so its answers can differ."
)
DROP_ADDED_ROWS = Repair(
    "drop-copies",
    "Import the LoRA part alone",
    "The first rows equal the base's, so only the added tokens stay out.",
)
USE_ALONE = Repair(
    "use-alone",
    "Keep the trained weights",
    "It answers as its own tool, and is used alone: at weight 1, with no other adapter in its column.",
)
DROP_BIASES = Repair(
    "drop-biases", "Leave the biases out", "Its answers can differ from those of the tool that made it."
)
DROP_EMBEDDINGS = Repair(
    "drop-layers", "Import the other layers", "These layers stay out, so its answers can differ."
)
COPY_TOLERANCE = 1e-3  # of the largest weight: a copy that was saved in 16 bits is the base's
CANNOT_WEIGH = "Whole weights cannot be weighed against those of other adapters in a mix."
PLAIN_KINDS = ("Linear",)  # of a head that can be replaced


def check(state: Examination) -> None:
    """Sorts the tensors that are not factors, and plans what the adapter replaces."""
    changed: list[Extra] = []
    grown: list[Extra] = []
    equal = 0
    for extra in state.foreign.extras:
        if extra.kind in ("copy", "base"):
            relation = _compare_with_base(state, extra)
            if relation == "equal":
                equal += 1
            elif relation == "grown":
                grown.append(extra)
            else:
                changed.append(extra)
    if equal:
        state.note(
            "copies",
            f"{equal} of its tensors are copies of the base's weights and equal them.",
            "They stay out.",
        )
    biases = _find_biases(state, changed)
    replaced = [*grown, *changed, *biases]
    is_usable = bool(state.plan.layers) and all(_is_usable(state, e) for e in replaced)
    alone = [USE_ALONE] if is_usable else []
    chosen = _name_copies(state, grown, changed, alone)
    if USE_ALONE.id in chosen:
        _plan_own(state, replaced)
    _check_tokens(state, is_usable)
    _check_others(state, biases)


def _name_copies(
    state: Examination, grown: list[Extra], changed: list[Extra], alone: list[Repair]
) -> set[str]:
    """Adds the findings about whole weights; returns the ids of the repairs that were chosen."""
    has_layers, chosen = bool(state.plan.layers), set()
    if grown:
        rows = grown[0].tensor.shape[0]
        chosen.add(
            state.block(
                "vocabulary",
                f"It has a vocabulary of {rows:,} tokens, and the base has {state.base.vocabulary:,}: "
                f"{rows:,} against {state.base.vocabulary:,} tokens. The first rows equal the base's.",
                "A prompt is read with the tokens of the base, so the added ones occur in answers only.",
                *([DROP_ADDED_ROWS] if has_layers else []),
                *alone,
            )
        )
    if changed:
        names = list_names([e.layer or e.tensor.name for e in changed])
        rows = changed[0].tensor.shape[0] if changed[0].tensor.shape else 0
        resized = (
            f" ({rows:,} against {state.base.vocabulary:,} tokens)" if _is_resized(state, changed[0]) else ""
        )
        state.properties.append("trained copies of base weights")
        chosen.add(
            state.block(
                "trained-copies",
                f"It holds trained weights of {names}{resized}, which replace those of the base.",
                CANNOT_WEIGH,
                *([DROP_COPIES] if has_layers else []),
                *alone,
            )
        )
    return chosen


def _find_biases(state: Examination, changed: list[Extra]) -> list[Extra]:
    """The biases of modules whose weights are replaced."""
    layers = {e.layer for e in changed if e.kind == "copy"}
    return [e for e in state.foreign.extras if e.kind == "bias" and e.layer in layers]


def _is_usable(state: Examination, extra: Extra) -> bool:
    """Whether a module of the base can be replaced: the embedding, the head or a norm of a causal model."""
    base, shape = state.base, extra.tensor.shape
    layer = base.layers.get(extra.layer)
    if layer is None or extra.kind not in ("copy", "bias") or base.task_type == "SEQ_2_SEQ_LM":
        return False
    if extra.layer not in (base.embedding, base.head):
        return bool(layer.width) and shape == (layer.width,)
    if extra.layer == base.head and layer.kind not in PLAIN_KINDS:
        return False
    if extra.kind == "bias":
        return shape == (layer.outputs,)
    return len(shape) == 2 and shape[1] == layer.inputs and shape[0] >= layer.outputs


def _plan_own(state: Examination, replaced: list[Extra]) -> None:
    """Plans the modules that the adapter replaces. With tied weights, one tensor can be that of both ends.

    peft replaces a module of `modules_to_save` alone, even where it is tied; a tensor that is loaded into the
    tied weights themselves changes both ends.
    """
    base, config = state.base, state.foreign.settings
    for extra in replaced:
        parameter = "bias" if extra.kind == "bias" else "weight"
        state.plan.own.setdefault(extra.layer, {})[parameter] = extra.tensor
    state.properties.append("used alone")
    ends = [path for path in (base.embedding, base.head) if path in state.plan.own]
    if not base.is_tied or len(ends) != 1:
        return
    saved = config.get("modules_to_save")
    names = [n for n in saved if isinstance(n, str)] if isinstance(saved, list) else []
    is_separate = any(f".{ends[0]}".endswith(f".{n}") for n in names)
    if not is_separate or config.get("ensure_weight_tying") is True:
        other = base.head if ends[0] == base.embedding else base.embedding
        state.plan.own[other] = {"weight": state.plan.own[ends[0]]["weight"]}


def _check_tokens(state: Examination, others_are_usable: bool) -> None:
    """Vectors of single tokens, which peft keeps beside the embedding."""
    found = [e for e in state.foreign.extras if e.kind == "tokens"]
    if not found:
        return
    ids = {e.layer: _read_token_ids(state, e) for e in found}
    is_usable = others_are_usable and all(ids.values()) and not state.plan.own and len(ids) == len(found)
    repairs = ([DROP_COPIES] if state.plan.layers else []) + ([USE_ALONE] if is_usable else [])
    state.properties.append("trained tokens")
    chosen = state.block(
        "trained-copies",
        f"It trains the vectors of single tokens: {list_names([e.tensor.name for e in found])}.",
        CANNOT_WEIGH,
        *repairs,
    )
    if chosen == USE_ALONE.id:
        state.plan.tokens = {e.layer: (ids[e.layer], e.tensor) for e in found}


def _read_token_ids(state: Examination, extra: Extra) -> list[int]:
    """The ids of trained tokens as the configuration lists them; [] where they do not fit."""
    base, stated = state.base, state.foreign.settings.get("trainable_token_indices")
    ids: Any = stated if isinstance(stated, list) else None
    if isinstance(stated, dict):
        ids = next((v for k, v in stated.items() if f".{extra.layer}".endswith(f".{k}")), None)
    is_list = isinstance(ids, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in ids)
    layer = base.layers.get(extra.layer)
    if not is_list or layer is None or extra.layer not in (base.embedding, base.head):
        return []
    is_known = len(set(ids)) == len(ids) and all(0 <= i < base.vocabulary for i in ids)
    fits = extra.tensor.name.endswith(TOKENS) and extra.tensor.shape == (len(ids), layer.inputs)
    return list(ids) if is_known and fits and base.task_type != "SEQ_2_SEQ_LM" else []


def _check_others(state: Examination, used: list[Extra]) -> None:
    """Biases, factors of embeddings, and tensors of an unknown kind."""
    for kinds, finding, what, repair in (
        (("bias", "lora_bias"), "bias", "It trains biases", DROP_BIASES),
        (("embedding",), "layer-kind", "It has low-rank factors of an embedding", DROP_EMBEDDINGS),
        (("unknown", "magnitude"), "unknown-tensors", "It has tensors of an unknown kind", None),
    ):
        found = [e for e in state.foreign.extras if e.kind in kinds and e not in used]
        if not found:
            continue
        state.properties.append(
            {"bias": "trained biases", "layer-kind": "trained embeddings"}.get(finding, "")
        )
        names = list_names([e.tensor.name for e in found])
        follows = "They cannot be weighed in a mix, which adds products of two factors only."
        repairs = [repair] if repair and state.plan.layers else []
        state.block(finding, f"{what}: {names}.", follows, *repairs)


def _is_resized(state: Examination, extra: Extra) -> bool:
    layer = state.base.layers.get(extra.layer)
    return bool(
        layer
        and extra.tensor.shape
        and layer.outputs == state.base.vocabulary
        and extra.tensor.shape[0] != layer.outputs
    )


def _compare_with_base(state: Examination, extra: Extra) -> str:
    """ "equal" to the base's weights, "grown" where the first rows are, else "changed"."""
    path = extra.layer.replace(".base_layer", "")
    layer = state.base.layers.get(path)
    if layer is None or not layer.outputs or len(extra.tensor.shape) != 2:
        return "changed"
    rows, width = extra.tensor.shape
    if width != layer.inputs or rows < layer.outputs:
        return "changed"
    own, theirs = state.base.read_weight(path), extra.tensor.read().float()
    if not _is_close(own, theirs[: layer.outputs]):
        return "changed"
    return "equal" if rows == layer.outputs else "grown"


def _is_close(own: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((own - theirs).abs().max() <= COPY_TOLERANCE * own.abs().max())
