"""Adapters with weights of their own: a trained embedding, head, norm, or single tokens, active in some rows.

Such weights replace those of the base, so they have no weight in a mix: an adapter with them is active alone
in its row, at weight 1. Other rows of the same batch may be anything. A module computes all rows with the
base's weights, and the rows of the adapter once more with its own:

```
rows of a batch      base   base + a   adapter with own head   0.5 a + b
lm_head              W x     W x            W' x                W x
added tokens        -10⁴    -10⁴            W' x               -10⁴        a vocabulary that a tool extended
```

The modules of the base are not changed: hooks exist while a mix with such a row is active.

Letters: B rows, T tokens, V vocabulary of the base, D hidden size, n trained tokens.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from core.errors import AdapterError
from core.store.adapter_weights import TOKENS

PREFIX = "base_model.model."  # of every key in peft's file format
NEVER = -1e4  # a logit that is never sampled, and with which a divergence stays finite
FIX = "Choose an adapter that was trained on this base."


@dataclass(eq=False)
class OwnModule:
    """A copy of a module of the base with other weights.

    Attributes:
        module: computes with them.
        rows: of its weight, for an embedding or a head; 0 for a norm.
    """

    module: nn.Module
    rows: int = 0

    def compute(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """The output for the inputs x of some rows; `base` is that of the base's module."""
        y: torch.Tensor = self.module(x)
        return y


@dataclass(eq=False)
class OwnTokens:
    """Vectors of single tokens in an embedding or a head.

    Attributes:
        ids: (n,) ascending. vectors: (n, D). scale: of an embedding that multiplies its vectors.
    """

    ids: torch.Tensor
    vectors: torch.Tensor
    is_head: bool
    scale: float = 1.0
    rows: int = 0

    def compute(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """As `OwnModule.compute`."""
        y = base.clone()
        if self.is_head:
            y[..., self.ids] = (x.to(self.vectors.dtype) @ self.vectors.t()).to(y.dtype)
            return y
        at = torch.searchsorted(self.ids, x).clamp(max=len(self.ids) - 1)
        is_own = self.ids[at] == x
        y[is_own] = (self.vectors[at[is_own]] * self.scale).to(y.dtype)
        return y


Own = OwnModule | OwnTokens


@dataclass(eq=False)
class OwnWeights:
    """What one adapter replaces.

    Attributes:
        label: the adapter's name, for messages.
        modules: path in the base -> what computes there.
    """

    label: str
    modules: dict[str, Own] = field(default_factory=dict)


def split_own(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Splits the tensors of a file into (LoRA factors, own weights), under their keys."""
    own = {k for k in tensors if ".lora_" not in k}
    return {k: v for k, v in tensors.items() if k not in own}, {k: tensors[k] for k in own}


def build_own_weights(
    model: Any, name: str, tensors: Mapping[str, torch.Tensor], token_ids: Mapping[str, Sequence[int]]
) -> OwnWeights:
    """Builds the modules of an adapter with weights of its own.

    Args:
        model: of transformers, with peft's layers in place.
        name: of the adapter, for messages.
        tensors: own weights under the keys of peft's file format.
        token_ids: path of an embedding or head -> ids of its trained tokens.

    Raises:
        AdapterError: a tensor fits no module of the base.
    """
    found = OwnWeights(name)
    head = find_path(model, model.get_output_embeddings())
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        path, _, parameter = key.removeprefix(PREFIX).rpartition(".")
        if parameter == TOKENS:
            path = path.removesuffix(".token_adapter")
            found.modules[path] = _make_tokens(model, name, path, path == head, token_ids[path], tensor)
            if is_tied(model) and path != head and head not in token_ids:  # as peft: both sides learn them
                found.modules[head] = _make_tokens(model, name, head, True, token_ids[path], tensor)
        else:
            weights.setdefault(path, {})[parameter] = tensor
    for path, own in weights.items():
        module = _find_module(model, name, path)
        found.modules[path] = _copy_module(module, name, path, own)
    return found


def _find_module(model: Any, name: str, path: str) -> nn.Module:
    try:
        module: Any = model.get_submodule(path)
    except AttributeError as e:
        raise AdapterError(f"The adapter {name!r} replaces {path!r}, which the base lacks.", FIX) from e
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module  # type: ignore[no-any-return]


def _make_tokens(
    model: Any, name: str, path: str, is_head: bool, ids: Sequence[int], vectors: torch.Tensor
) -> OwnTokens:
    weight: Any = _find_module(model, name, path).weight
    if vectors.shape != (len(ids), weight.shape[1]) or not ids or not 0 <= min(ids) <= max(ids) < len(weight):
        raise AdapterError(
            f"The trained tokens of {name!r} do not fit {path!r}: {tuple(vectors.shape)} numbers for "
            f"{len(ids)} tokens, and the base has {len(weight):,} of {weight.shape[1]}.",
            FIX,
        )
    index = torch.tensor(list(ids), device=weight.device)
    order = index.argsort()
    scale = getattr(_find_module(model, name, path), "embed_scale", 1.0)
    return OwnTokens(index[order], vectors.to(weight.device)[order], is_head, float(scale))


def _copy_module(module: nn.Module, name: str, path: str, own: Mapping[str, torch.Tensor]) -> OwnModule:
    """A module like one of the base, with other weights; embeddings and heads may have more rows."""
    before = dict(module.named_parameters(recurse=False))
    for parameter, tensor in own.items():
        shape = tuple(before[parameter].shape) if parameter in before else ()
        fits = len(shape) == tensor.dim() and shape[1:] == tuple(tensor.shape[1:])
        if not fits or len(tensor) < shape[0] or (tensor.dim() == 1 and len(tensor) != shape[0]):
            raise AdapterError(
                f"The weights of {path!r} in {name!r} have the shape {tuple(tensor.shape)}, and those of the "
                f"base {shape}.",
                FIX,
            )
    weight: Any = before["weight"]
    if hasattr(weight, "quant_state") or hasattr(weight, "SCB"):
        raise AdapterError(
            f"The adapter {name!r} replaces {path!r}, which is quantized in this base.",
            "Load the base without quantization.",
        )
    twin = copy.copy(module)
    fresh: dict[str, Any] = {name: OrderedDict() for name in ("_forward_hooks", "_forward_pre_hooks")}
    twin.__dict__ = {**module.__dict__, **fresh, "_parameters": dict(module._parameters)}
    twin.__dict__.pop("forward", None)  # of a training step
    for parameter, tensor in own.items():
        values = tensor.to(weight.device, weight.dtype)
        twin._parameters[parameter] = nn.Parameter(values, requires_grad=False)
    rows = len(own["weight"]) if "weight" in own and own["weight"].dim() == 2 else 0
    for size in ("num_embeddings", "out_features"):
        if rows and hasattr(twin, size):
            setattr(twin, size, rows)
    return OwnModule(twin, rows)


def find_path(model: Any, module: Any) -> str:
    """The path of a module in a model, without peft's wrapper; "" where it has none."""
    if module is None:
        return ""
    paths = (path for path, found in model.named_modules() if found is module)
    return next(paths, "").removesuffix(".base_layer")


def is_tied(model: Any) -> bool:
    """Whether the head has the very weights of the input embedding."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", 0)


def find_alone_rows(
    points: torch.Tensor, names: Sequence[str], own: Mapping[str, OwnWeights]
) -> dict[str, list[int]]:
    """Finds the rows of a mix in which an adapter with weights of its own is active.

    Args:
        points: (P, B, adapters), the weights from the first layer to the last.
        names: peft's adapter names, in the order of the columns.
        own: peft's name of an adapter with weights of its own -> these weights.

    Raises:
        AdapterError: such an adapter is beside another one, or has another weight than 1.
    """
    weights = points.detach()
    is_on = (weights != 0).any(0)  # (B, adapters)
    found: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        if name not in own:
            continue
        for row in is_on[:, column].nonzero().flatten().tolist():
            others = int(is_on[row].sum()) - 1
            weight = weights[:, row, column]
            if others:
                given = f"got {others} other adapter{'s' if others > 1 else ''} beside it"
            elif not bool((weight == weight[0]).all()):
                given = "got a tilt"
            elif float(weight[0]) != 1:
                given = f"got {float(weight[0]):g}"
            else:
                found.setdefault(name, []).append(row)
                continue
            raise AdapterError(
                f"The adapter {own[name].label!r} replaces weights of the base, so it must be active alone "
                f"and at weight 1, {given}.",
                "Give it a column of its own, with no other adapter and no tilt.",
            )
    return found


@contextlib.contextmanager
def replace_rows(
    model: Any,
    own: Mapping[str, OwnWeights],
    rows: Mapping[str, Sequence[int]],
    count: int,
    is_active: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """While open, the given rows of every forward are computed with the adapters' own weights.

    Args:
        own: peft's name of an adapter -> its weights.
        rows: peft's name of an adapter -> its rows of the mix.
        count: rows of the mix; a forward has each k times, consecutively.
        is_active: whether this is the active mix; false while another one is active inside it.
    """
    parts: dict[str, list[tuple[torch.Tensor, Own]]] = {}
    for name, indices in rows.items():
        for path, module in own[name].modules.items():
            parts.setdefault(path, []).append((torch.tensor(list(indices)), module))
    with contextlib.ExitStack() as stack:
        for path, replacements in parts.items():
            module = _find_module(model, "", path)
            hook = _RowHook(replacements, count, is_active)
            if isinstance(module, nn.Embedding):
                stack.callback(module.register_forward_pre_hook(hook.limit_ids).remove)
            stack.callback(module.register_forward_hook(hook.replace).remove)
        yield


class _RowHook:
    """The hooks of one module: its output has other rows for some adapters."""

    def __init__(
        self, parts: Sequence[tuple[torch.Tensor, Own]], count: int, is_active: Callable[[], bool]
    ) -> None:
        self._parts, self._count, self._is_active = parts, count, is_active
        self._ids: torch.Tensor | None = None

    def limit_ids(self, module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Before an embedding: added tokens, which the base lacks, are looked up in the adapter alone."""
        if not self._is_active():
            return args
        self._ids = args[0]
        return (args[0].clamp(max=module.num_embeddings - 1), *args[1:])

    def replace(self, module: Any, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
        """After a module: the rows of the adapters are replaced; added tokens of other rows are `NEVER`."""
        if not self._is_active():
            return y
        x = args[0] if self._ids is None else self._ids
        self._ids = None
        if len(x) % self._count:
            raise AdapterError(
                f"A layer got {len(x)} rows, and the mix has {self._count}.",
                "Give a multiple of the mix's rows, or one mix for all.",
            )
        each = len(x) // self._count
        width = max((part.rows for _, part in self._parts), default=0)
        if isinstance(module, nn.Embedding) or width <= y.shape[-1]:
            result = y.clone()
        else:
            result = y.new_full((*y.shape[:-1], width), NEVER)
            result[..., : y.shape[-1]] = y
        for rows, part in self._parts:
            at = (rows[:, None] * each + torch.arange(each)).flatten().to(x.device)
            own = part.compute(x[at], y[at])
            result[at, ..., : own.shape[-1]] = own
        return result
