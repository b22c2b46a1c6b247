"""The examination of a foreign adapter against the resident base: findings, and the plan of the import.

    foreign adapter ─┬─ names ─────> layers of the base, or "rename the layers"
                     ├─ shapes ────> ranks, experts, another base
                     ├─ extras ────> `extras.py`: copies of the base, trained embeddings, biases, others
                     ├─ settings ──> `settings.py`: initialisation, DoRA, variants
                     ├─ values ────> finite, not all zero
                     └─ texts ─────> `surroundings.py`: base, stop tokens, prompt form

Nothing is loaded into the model. A finding that blocks is answered by a repair, whose id the user gives; the
examination then plans the import with it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from core.importing import extras, gguf_form, settings, surroundings
from core.importing.base_view import BaseView
from core.importing.findings import BLOCKS, NOTES, WARNS, Finding, Preflight, Repair
from core.importing.foreign import Factors, ForeignAdapter
from core.importing.names import find_prefixes, list_names, rename
from core.importing.tensors import StoredTensor
from core.model.deltas import layer_index, short_name
from core.store.adapter_config import RANK_LIMIT

DROP_LAYERS = Repair(
    "drop-layers", "Import the other layers", "These layers stay out, so its answers can differ."
)
RENAME = Repair("rename-layers", "Rename the layers", "Every layer gets the name that it has in the base.")
FIND_BASE = "Load the base that it was trained on, and import it again."


@dataclass
class Plan:
    """What an import writes.

    Attributes:
        layers: path in the base -> its update, as the file has it.
        experts: paths of fused experts among `layers`, without ".base_layer".
        repairs: ids of the repairs that were chosen and apply.
        target_parameters: of an adapter on fused experts.
        own: path in the base -> parameter -> the weights that replace it, where the adapter is used alone.
        tokens: path in the base -> (ids, vectors) of single trained tokens.
        stop_ids: ids of added tokens that end an answer.
    """

    layers: dict[str, Factors] = field(default_factory=dict)
    experts: set[str] = field(default_factory=set)
    repairs: set[str] = field(default_factory=set)
    target_parameters: tuple[str, ...] = ()
    own: dict[str, dict[str, StoredTensor]] = field(default_factory=dict)
    tokens: dict[str, tuple[list[int], StoredTensor]] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()


@dataclass
class Examination:
    """The state of an examination: what was found, and what was chosen.

    Attributes:
        choices: ids of the repairs that the user chose.
    """

    foreign: ForeignAdapter
    base: BaseView
    choices: frozenset[str]
    findings: list[Finding] = field(default_factory=list)
    plan: Plan = field(default_factory=Plan)
    properties: list[str] = field(default_factory=list)

    def block(self, kind: str, what: str, follows: str = "", *repairs: Repair) -> str:
        """Adds a finding that blocks the import; returns the id of the repair that was chosen, or ""."""
        chosen = next((r.id for r in repairs if r.id in self.choices), "")
        self.findings.append(Finding(kind, BLOCKS, what, follows, repairs, chosen))
        if chosen:
            self.plan.repairs.add(chosen)
        return chosen

    def warn(self, kind: str, what: str, follows: str = "", *repairs: Repair) -> str:
        """Adds a warning, as `block`."""
        chosen = next((r.id for r in repairs if r.id in self.choices), "")
        self.findings.append(Finding(kind, WARNS, what, follows, repairs, chosen))
        if chosen:
            self.plan.repairs.add(chosen)
        return chosen

    def note(self, kind: str, what: str, follows: str = "") -> None:
        """Adds a note."""
        self.findings.append(Finding(kind, NOTES, what, follows))


def examine(foreign: ForeignAdapter, base: BaseView, choices: Collection[str] = ()) -> tuple[Preflight, Plan]:
    """Examines a foreign adapter.

    Args:
        choices: ids of repairs, as `Repair.id`.

    Returns:
        What was found, and what an import with these choices would write.
    """
    state = Examination(foreign, base, frozenset(choices))
    if foreign.problem:
        state.block("kind", *foreign.problem)
    elif not foreign.factors:
        state.block(
            "no-factors", f"{foreign.files.weights.name!r} has no low-rank factors.",
            "It is not a LoRA adapter, or it is damaged: copy it again from where it was trained.",
        )  # fmt: skip
    else:
        _check_architecture(state)
        _find_layers(state)
        _check_shapes(state)
        settings.check(state)
        extras.check(state)
        _check_values(state)
    surroundings.check(state)
    return _summarize(state), state.plan


def _check_architecture(state: Examination) -> None:
    """An adapter as GGUF states the architecture, and has rows in the order of that architecture."""
    stated, base = state.foreign.architecture, state.base
    if stated and base.model_type not in gguf_form.list_model_types(stated):
        state.block(
            "other-base",
            f"It is for the architecture {stated[:60]!r}, and the base {base.name!r} is {base.model_type!r}.",
            FIND_BASE,
        )


def _find_layers(state: Examination) -> None:
    """Finds each layer of the adapter in the base, and fills the plan."""
    foreign, base = state.foreign, state.base
    if foreign.incomplete:
        state.block(
            "missing-factor",
            f"One of the two factors is missing in {list_names(foreign.incomplete)}.",
            "The file is damaged or was cut off: copy it again from where the adapter was trained.",
        )
    strangers = [layer for layer in foreign.factors if _path_of(layer) not in base.layers]
    prefixes = find_prefixes(strangers, base.layers) if strangers else None
    if prefixes:
        what = f"Its layers are called {prefixes[0]!r}..., and those of the base {prefixes[1]!r}..."
        if not state.block(
            "other-names", what, "Without new names, none of its layers is in the base.", RENAME
        ):
            return
        new = {layer: rename(layer, prefixes) for layer in strangers}
        state.plan.layers = {new.get(layer, layer): f for layer, f in foreign.factors.items()}
    elif strangers:
        some = "None" if len(strangers) == len(foreign.factors) else "Only some"
        found = len(foreign.factors) - len(strangers)
        state.block(
            "other-base",
            f"{some} of its {len(foreign.factors)} layers are in the base {base.name!r} ({found}); "
            f"not in it: {list_names(strangers)}.",
            f"It was trained on another base{_quote_claim(foreign)}. {FIND_BASE}",
        )
        return
    else:
        state.plan.layers = dict(foreign.factors)
    others = [layer for layer in state.plan.layers if not _can_be_mixed(state, layer)]
    if others:
        kinds = ", ".join(sorted({base.layers[_path_of(layer)].kind for layer in others}))
        state.block(
            "layer-kind",
            f"It changes layers of the kind {kinds}: {list_names(others)}.",
            "Only linear layers and fused experts can be mixed.",
            *([DROP_LAYERS] if len(others) < len(state.plan.layers) else []),
        )
        for layer in others:
            del state.plan.layers[layer]
    state.plan.experts = {_path_of(m) for m in state.plan.layers if base.layers[_path_of(m)].experts}


def _path_of(layer: str) -> str:
    """The path of a layer in the base; peft nests its wrappers of fused experts by ".base_layer"."""
    return layer.replace(".base_layer", "")


def _can_be_mixed(state: Examination, layer: str) -> bool:
    found = state.base.layers[_path_of(layer)]
    return found.is_product or bool(found.experts)


def _quote_claim(foreign: ForeignAdapter) -> str:
    return f", {foreign.claimed_base!r}" if foreign.claimed_base else ""


def _check_shapes(state: Examination) -> None:
    """Compares the shapes of factors with the base, and the ranks with each other."""
    base, uneven = state.base, []
    wrong: list[tuple[str, Factors, str]] = []
    resized: list[tuple[str, Factors, str]] = []
    for layer, f in state.plan.layers.items():
        found = base.layers[_path_of(layer)]
        if f.a.shape[0] != f.b.shape[1] or not f.a.shape[0]:
            uneven.append(layer)
        elif found.experts:
            if not _fits_experts(f, found.parameters):
                wrong.append((layer, f, "its experts"))
        elif (f.b.shape[0], f.a.shape[1]) != (found.outputs, found.inputs):
            is_head = found.outputs == base.vocabulary and f.a.shape[1] == found.inputs
            (resized if is_head else wrong).append((layer, f, f"{found.outputs} x {found.inputs}"))
    if uneven:
        state.block(
            "damaged",
            f"The two factors of {list_names(uneven)} have different ranks.",
            "The file is damaged: copy it again from where the adapter was trained.",
        )
    if wrong:
        layer, f, expected = wrong[0]
        state.block(
            "other-base",
            f"{layer} is for a matrix of {f.b.shape[0]} x {f.a.shape[1]}, and the base {base.name!r} has "
            f"{expected}; {len(wrong)} of {len(state.plan.layers)} layers do not fit.",
            f"It was trained on another base{_quote_claim(state.foreign)}. {FIND_BASE}",
        )
    for layer, f, _ in resized:
        state.block(
            "vocabulary",
            f"{layer} is for a vocabulary of {f.b.shape[0]:,} tokens, and the base has {base.vocabulary:,}: "
            f"{f.b.shape[0]:,} against {base.vocabulary:,} tokens.",
            "The tool added tokens to the base. The other layers can be imported alone.",
            DROP_LAYERS,
        )
        del state.plan.layers[layer]
    large = {m: _rank_of(state, m) for m in state.plan.layers}
    if large and max(large.values()) > RANK_LIMIT:
        state.block(
            "rank", f"Its rank is {max(large.values()):,}; ranks up to {RANK_LIMIT:,} can be mixed.",
            "Train it with a lower rank, or merge it into its base.",
        )  # fmt: skip


def _fits_experts(f: Factors, parameters: dict[str, tuple[int, ...]]) -> bool:
    sides = (f.b.shape[0], f.a.shape[1])
    return any(
        sides in (shape[1:], shape[:0:-1]) and f.a.shape[0] % shape[0] == 0 for shape in parameters.values()
    )


def _rank_of(state: Examination, layer: str) -> int:
    """The rank of an update: per expert, where it has the experts side by side."""
    count = state.base.layers[_path_of(layer)].experts if _path_of(layer) in state.base.layers else 0
    width = state.plan.layers[layer].a.shape[0]
    return width // count if count else width


def _check_values(state: Examination) -> None:
    """Reads every factor once: all values must be finite, and some update not zero."""
    is_zero = True
    plan = state.plan
    own = [t for weights in plan.own.values() for t in weights.values()] + [
        t for _, t in plan.tokens.values()
    ]
    second = {id(f.b) for f in plan.layers.values()}
    factors = [t for f in plan.layers.values() for t in (f.a, f.b, f.magnitude) if t is not None]
    for tensor in [*factors, *own]:
        values = tensor.read()
        if not bool(torch.isfinite(values).all()):
            state.block(
                "not-finite",
                f"The tensor {tensor.name!r} holds NaN or infinite values.",
                "The adapter is unusable: take an earlier checkpoint, or lower the rate.",
            )
            return
        if id(tensor) in second and is_zero:
            is_zero = not bool(values.any())
    if is_zero and plan.layers and not own:
        state.warn(
            "no-effect",
            "Every update is zero.",
            "The adapter changes nothing: it was saved before its first step, or it is not the trained one.",
        )


def _summarize(state: Examination) -> Preflight:
    foreign, plan = state.foreign, state.plan
    factors = plan.layers or foreign.factors
    blocks = {layer_index(m) for m in factors} - {-1}
    ranks = {_rank_of(state, m) for m in plan.layers} or {f.rank for f in factors.values()}
    order = {BLOCKS: 0, WARNS: 1, NOTES: 2}
    files = foreign.files
    tensors: list[StoredTensor] = [t for f in factors.values() for t in (f.a, f.b)]
    if foreign.is_rank_stabilized:
        state.properties.insert(0, "rsLoRA")
    return Preflight(
        source=files.source,
        name=str(files.record.get("name") or files.source)[:120],
        tool=foreign.tool,
        form=foreign.form,
        base=state.base.name,
        claimed_base=foreign.claimed_base,
        base_is_proven=surroundings.is_proven(state),
        ranks=tuple(sorted(ranks)),
        scalings=tuple(sorted({round(_scale(state, m, f), 6) for m, f in factors.items()})),
        targets=tuple(sorted({short_name(m) for m in factors})),
        layers=len(blocks),
        modules=len(factors),
        parameters=sum(t.size for t in tensors),
        properties=tuple(dict.fromkeys(p for p in state.properties if p)),
        findings=tuple(sorted(state.findings, key=lambda f: order[f.level])),
    )


def _scale(state: Examination, layer: str, f: Factors) -> float:
    """The scaling of a layer, with the rank of one expert where it has several."""
    return compute_scale(state.foreign, f, _rank_of(state, layer) if layer in state.plan.layers else f.rank)


def compute_scale(foreign: ForeignAdapter, f: Factors, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
    alpha = f.alpha or 0.0
    if not rank:
        return 0.0
    return alpha / rank**0.5 if foreign.is_rank_stabilized else alpha / rank
