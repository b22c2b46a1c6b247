"""The loss of a batch on a CPU, from the arithmetic that it needs and no more.

- Sequences that begin alike share the computation of their beginning, and tokens after which nothing is
  trained are left out (`core.data.tokens.prefix_tree`, `tree_attention`).
- The logits of a block of positions at a time (`head_loss`), and of trained positions only.
- Linear layers with LoRA, gated feed-forwards and RMSNorm keep less for the backward, and take fewer passes
  over memory (`projections`).

The modules of the base are recognised by what they compute, not by the name of their architecture: each one
has to give the same numbers as the function that takes its place. Then the whole model has to give the same
logits in a tree as for each sequence alone. Where it does not, the run trains as it would without this
module. The numbers differ by rounding, so a run that began without it continues without it
(`TrainSpec.rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional

from core.data.tokens.encoding import IGNORE_INDEX
from core.data.tokens.prefix_tree import PrefixTree, build_tree
from core.model.resident import Resident
from core.train.lean.head_loss import HeadLoss
from core.train.lean.projections import GatedFeedForward, LoraProjection, Projection, RmsNorm
from core.train.lean.tree_attention import NAME, attend_to, make_buckets

TOLERANCE = 1e-3  # of a difference of logits, as a share of the largest
MODULE_TOLERANCE = 1e-5  # of a difference between a module and the function that takes its place
PROBE = ((5, 3, 8, 2, 9, 4), (5, 3, 8, 7, 7, 1, 6, 2), (5, 3, 8, 7, 6), (4, 4, 1))  # multiples of STRIDE
STRIDE = 7919  # a prime, so that the probe's token ids come from the whole vocabulary

Forward = Callable[..., Any]


class LeanStep:
    """Computes the loss of batches of one run.

    Attributes:
        has_head: the loss is computed from hidden states; otherwise from the logits of the model.
    """

    def __init__(self, resident: Resident) -> None:
        self.resident = resident
        self.has_head = False
        self._found: tuple[Any, list[tuple[nn.Module, Forward]]] | None = None
        self._kinds: dict[Any, Any] = {}

    # --- the loss

    def sum_nats(self, model: Any, batch: dict[str, Any]) -> torch.Tensor | None:
        """The nats of the trained tokens of a batch, as `core.data.tokens.collation.collate` returns it.

        Returns:
            A scalar; None if the batch trains nothing.
        """
        tree = build_tree(split_batch(batch))
        if not tree.targets:
            return None
        targets = sorted(tree.targets.items())
        nodes = sorted({node for (node, _), _ in targets})
        row_of = {node: row for row, node in enumerate(nodes)}
        rows = torch.tensor([row_of[node] for (node, _), _ in targets])
        tokens = torch.tensor([token for (_, token), _ in targets])
        states = self._run(model, tree, torch.tensor(nodes))
        counts = torch.tensor([float(count) for _, count in targets], dtype=states.dtype)
        if self.has_head:
            head = self.resident.base.model.get_output_embeddings()
            nats: torch.Tensor = HeadLoss.apply(states, head.weight, head.bias, rows, tokens, counts)
            return nats
        each = functional.cross_entropy(states[rows].float(), tokens, reduction="none")
        return torch.dot(each, counts.to(each.dtype))

    def _run(self, model: Any, tree: PrefixTree, nodes: torch.Tensor) -> torch.Tensor:
        """The hidden states of nodes, or their logits without `has_head`: (P, H) or (P, V)."""
        with self.replace_modules(), attend_to(make_buckets(tree.branches)):
            out = model(
                input_ids=torch.tensor([tree.ids]),
                position_ids=torch.tensor([tree.positions]),
                use_cache=False,
                logits_to_keep=nodes,
            )
        return out.logits[0]  # type: ignore[no-any-return]

    # --- the modules

    @contextmanager
    def replace_modules(self) -> Iterator[None]:
        """Replaces the forward of the modules that are recognised, and the attention function, inside."""
        modules = self.resident.mixer.modules
        if self._found is None or self._found[0] is not modules:  # an adapter was loaded or deleted
            self._found = modules, list(self._find_forwards(modules))
        with ExitStack() as stack:
            for config in {id(c): c for m in modules if (c := getattr(m, "config", None))}.values():
                if getattr(config, "_attn_implementation", None):
                    stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                    config._attn_implementation = NAME
            for module, forward in self._found[1]:
                vars(module)["forward"] = forward
            stack.callback(_restore_forwards, [module for module, _ in self._found[1]])
            if self.has_head:
                head = self.resident.base.model.get_output_embeddings()
                vars(head)["forward"] = _return_states
                stack.callback(_restore_forwards, [head])
            yield

    def _find_forwards(self, modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, Forward]]:
        inside: set[int] = set()
        for module in modules:
            if module._forward_hooks or module._forward_pre_hooks:
                continue
            if isinstance(module, LoraLayer) and is_plain_linear(module.get_base_layer()):
                if id(module) not in inside:
                    yield module, _project_with(module)
            elif (eps := self._remember(module, find_rms_norm)) is not None:
                yield module, _normalise_with(module, eps)
            elif order := self._remember(module, find_gated_feed_forward):
                layers = [module.get_submodule(name) for name in order]
                yield module, _feed_forward_with(module, layers[:3], layers[3])

    def _remember(self, module: nn.Module, find: Callable[[nn.Module], Any]) -> Any:
        """What `find` says of a module; modules of one class with the same children are examined once.

        Also between two steps, after a chat has loaded an adapter: dropout is off, and random state stays.
        """
        key = find, type(module), tuple((n, type(c)) for n, c in module.named_children())
        if key not in self._kinds:
            modes = [(m, m.training) for m in module.modules()]
            with torch.random.fork_rng(devices=[]):
                try:
                    self._kinds[key] = find(module.eval())
                finally:
                    for each, mode in modes:
                        each.training = mode
        return self._kinds[key]

    # --- the check

    def check(self, model: Any) -> str:
        """Why the loss of this model cannot be computed here, or "".

        Compares the logits of sequences that share their beginnings with those of each sequence alone, in
        evaluation mode. Then runs one forward in train mode, in which a model may need what is not computed
        here, such as dropout of the attention. Random state and mode are as before it.
        """
        base = self.resident.base
        size = base.model.config.get_text_config().vocab_size
        sequences = [[i * STRIDE % size for i in ids] for ids in PROBE]
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                alone = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in sequences]
                head = base.model.get_output_embeddings()
                for has_head in (True, False) if is_plain_linear(head) else (False,):
                    self.has_head = has_head
                    if self._gives(model, sequences, alone):
                        self._try_train_mode(model, sequences)
                        return ""
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as e:
            return f"{type(e).__name__}: {e}".splitlines()[0][:200]
        finally:
            model.train(was_training)
        return "the sequences have other logits than alone"

    def _try_train_mode(self, model: Any, sequences: Sequence[list[int]]) -> None:
        """Raises what a forward in train mode raises."""
        tree = PrefixTree()
        for ids in sequences:
            tree.add([*ids, 0], [True] * (len(ids) + 1))
        model.train()
        with torch.random.fork_rng(devices=[]):
            self._run(model, tree, torch.arange(len(tree.ids)))

    def _gives(self, model: Any, sequences: Sequence[list[int]], alone: Sequence[torch.Tensor]) -> bool:
        tree = PrefixTree()
        paths = []
        for ids in sequences:
            tree.add([*ids, 0], [True] * (len(ids) + 1))  # the last one predicts, too
            paths.append(tree.branches[-1].path)
        states = self._run(model, tree, torch.arange(len(tree.ids)))
        if self.has_head:
            states = self.resident.base.model.get_output_embeddings()(states)
        return all(
            float((states[path] - logits).abs().max()) <= TOLERANCE * float(logits.abs().max())
            for path, logits in zip(paths, alone, strict=True)
        )


def split_batch(batch: dict[str, Any]) -> Iterator[tuple[list[int], list[bool]]]:
    """The sequences of a batch: token ids, and whether each of them is trained."""
    ids, labels = batch["input_ids"], batch["labels"]
    trained = (labels != IGNORE_INDEX).tolist()
    positions = batch.get("position_ids")
    for i, row in enumerate(ids.tolist()):
        starts = [0] if positions is None else (positions[i] == 0).nonzero()[:, 0].tolist()
        for start, end in zip(starts, [*starts[1:], len(row)], strict=True):
            yield row[start:end], trained[i][start:end]


def is_plain_linear(layer: Any) -> bool:
    """Whether this is a frozen linear layer in fp32, without hooks."""
    return (
        type(layer) is nn.Linear
        and layer.weight.dtype is torch.float32
        and not layer.weight.requires_grad
        and (layer.bias is None or not layer.bias.requires_grad)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


def find_rms_norm(module: nn.Module) -> float | None:
    """The epsilon of a module that computes RMSNorm, or None."""
    if "RMSNorm" not in type(module).__name__ or [n for n, _ in module.named_parameters()] != ["weight"]:
        return None
    weight = module.get_parameter("weight")
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if weight.dtype is not torch.float32 or weight.requires_grad or not isinstance(eps, float):
        return None
    x = _draw_inputs(weight.shape[-1])
    return eps if _equal(module, x, RmsNorm.apply(x, weight, eps)) else None


def find_gated_feed_forward(module: nn.Module) -> tuple[str, str, str, str] | None:
    """The names of gate, up, down and activation of a module that is a gated feed-forward, or None."""
    children = dict(module.named_children())
    linear = [n for n, c in children.items() if is_plain_linear(getattr(c, "base_layer", c))]
    others = [n for n in children if n not in linear]
    if len(linear) != 3 or len(others) != 1 or any(True for _ in children[others[0]].parameters()):
        return None
    base: dict[str, Any] = {n: getattr(children[n], "base_layer", children[n]) for n in linear}
    inner = max(layer.out_features for layer in base.values())
    down = [n for n in linear if base[n].in_features == inner and base[n].out_features != inner]
    gates = [n for n in linear if n not in down and base[n].out_features == inner]
    if len(down) != 1 or len(gates) != 2:
        return None
    x = _draw_inputs(base[gates[0]].in_features)
    for gate, up in (gates, gates[::-1]):
        product = children[others[0]](children[gate](x)) * children[up](x)
        if _equal(module, x, children[down[0]](product)):
            return gate, up, down[0], others[0]
    return None


def _draw_inputs(size: int) -> torch.Tensor:
    return torch.linspace(-2.0, 2.0, 3 * size).sin().mul(1.5).view(1, 3, size)


def _equal(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> bool:
    with torch.no_grad():
        own = module(x)
    if not isinstance(own, torch.Tensor) or own.shape != y.shape:
        return False
    return float((own - y).abs().max()) <= MODULE_TOLERANCE * max(float(own.abs().max()), 1e-9)


# --- the forwards that take the place of a module's own


def read_projection(layer: Any) -> Projection | None:
    """The frozen weight of a layer with its active adapters; None where an adapter is not a plain sum."""
    base = getattr(layer, "base_layer", layer)
    if base is layer:
        return Projection(base.weight, base.bias, (), (), ())
    if layer.disable_adapters or layer.merged or layer.mixer.mixer.active_mix is not None:
        return None
    factors: list[torch.Tensor] = []
    scalings, dropouts = [], []
    for name in layer.active_adapters:
        if name not in layer.lora_A or layer.scaling[name] == 0.0 and not _trains(layer, name):
            continue
        if name in layer.lora_variant or layer.lora_bias[name]:
            return None
        dropout = layer.lora_dropout[name]
        if not isinstance(dropout, (nn.Identity, nn.Dropout)):
            return None
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        if a.dtype is not torch.float32 or b.dtype is not torch.float32:
            return None
        factors += [a, b]
        scalings.append(float(layer.scaling[name]))
        dropouts.append(dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0)
    return Projection(base.weight, base.bias, tuple(factors), tuple(scalings), tuple(dropouts))


def _trains(layer: Any, name: str) -> bool:
    return bool(layer.lora_A[name].weight.requires_grad)


def _project_with(layer: Any) -> Forward:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        projection = None if args or kwargs or x.dtype is not torch.float32 else read_projection(layer)
        if projection is None:
            return type(layer).forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
        if not projection.scalings:  # an adapter of a chat; the numbers are those without its wrapper
            return layer.base_layer(x)  # type: ignore[no-any-return]
        return LoraProjection.apply(x, projection, *projection.factors)  # type: ignore[no-any-return]

    return forward


def _feed_forward_with(module: nn.Module, layers: Sequence[nn.Module], activation: nn.Module) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        parts = [read_projection(layer) for layer in layers]
        projections = [p for p in parts if p is not None]
        if len(projections) < len(parts) or x.dtype is not torch.float32:
            return type(module).forward(module, x)  # type: ignore[no-any-return]
        factors = [f for p in projections for f in p.factors]
        return GatedFeedForward.apply(x, projections, activation, *factors)  # type: ignore[no-any-return]

    return forward


def _normalise_with(module: nn.Module, eps: float) -> Forward:
    weight = module.get_parameter("weight")

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.dtype is not torch.float32:
            return type(module).forward(module, x)  # type: ignore[no-any-return]
        return RmsNorm.apply(x, weight, eps)  # type: ignore[no-any-return]

    return forward


def _return_states(states: torch.Tensor) -> torch.Tensor:
    return states


def _restore_forwards(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        vars(module).pop("forward", None)
