"""The device memory of a run, in bytes: an estimate before it starts, and advice when it does not fit.

    total = base + adapter + gradients + optimizer + activations + logits

What a step keeps for its backward is counted operation by operation from the model's shape, after Korthikanti
et al. 2022 (arXiv 2205.05198, section 4.1), for a frozen base: its own weights get no gradient, so the input
of a linear layer is kept only for the adapter on it. Letters: T tokens of a micro-batch, h hidden size, i
feed-forward size, k width of keys and values together, L layers, r rank, V vocabulary.

`core.train.memory_probe` measures a real step, which corrects later estimates on the same base.
`core.train.oom_retry` shrinks the micro-batch when a run does not fit in spite of its estimate.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.spec.training import LEAN_RULES, TrainSpec

BLOCK_BYTES = 24 << 20  # of the logits that are held at once (`core.train.lean.head_loss`)
OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # per weight, for two moments
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class ModelShape:
    """What decides the memory of a model.

    Attributes:
        inner: width of the feed-forward.
        keys_values: width of keys and values together.
        linear: leaf name of linear layers -> (number of layers, sum of their inputs, sum of their outputs).
        number_bytes: size of one number of an activation.
        base_bytes: size of the frozen base in memory.
        targets: leaf names that get an adapter when the spec names none; empty means all linear layers.
        groups: names of groups of layers that a spec may use -> leaf names.
    """

    layers: int
    hidden: int
    inner: int
    keys_values: int
    vocabulary: int
    linear: dict[str, tuple[int, int, int]]
    number_bytes: int
    base_bytes: int
    on_gpu: bool
    targets: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def from_base(cls, base: Any) -> ModelShape:
        """Reads the shape of a `core.model.base.Base`, on the thread that owns the model."""
        config = base.model.config.get_text_config()
        hidden = int(config.hidden_size)
        heads = int(getattr(config, "num_attention_heads", 0) or 1)
        head_size = int(getattr(config, "head_dim", 0) or hidden // heads)
        key_value_heads = int(getattr(config, "num_key_value_heads", 0) or heads)
        inner = getattr(config, "intermediate_size", 0) or getattr(config, "d_ff", 0) or 4 * hidden
        sizes = (p.element_size() for p in base.model.parameters() if p.is_floating_point())
        targets = () if "all-linear" in base.family.targets else tuple(base.family.targets)
        return cls(
            layers=int(config.num_hidden_layers),
            hidden=hidden,
            inner=int(inner),
            keys_values=2 * key_value_heads * head_size,
            vocabulary=int(config.vocab_size),
            linear=_linear_layers(base.model),
            number_bytes=next(sizes, 4),
            base_bytes=int(base.model.get_memory_footprint()),
            on_gpu=base.device.type == "cuda",
            targets=targets,
            groups=base.family.groups,
        )


def _linear_layers(model: Any) -> dict[str, tuple[int, int, int]]:
    """Leaf name -> (number, sum of inputs, sum of outputs) of the linear layers, without the head."""
    head = model.get_output_embeddings()
    layers: dict[str, tuple[int, int, int]] = {}
    for path, module in model.named_modules():
        layer = getattr(module, "base_layer", module)
        size = _linear_size(layer)
        if size and layer is not head and not path.endswith(".base_layer") and ".lora_" not in path:
            leaf = path.rpartition(".")[2]
            count, inputs, outputs = layers.get(leaf, (0, 0, 0))
            layers[leaf] = (count + 1, inputs + size[0], outputs + size[1])
    return layers


def _linear_size(module: Any) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, also of GPT-2's Conv1D; None of other modules."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)
    if hasattr(module, "nf") and hasattr(module, "nx"):
        return int(module.nx), int(module.nf)
    return None


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run needs, part by part."""

    base: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def step(self) -> int:
        """What one forward and backward allocate and release."""
        return self.activations + self.logits + self.gradients

    @property
    def total(self) -> int:
        return self.base + self.adapter + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True)
class MemoryReport:
    """Whether a run fits the device, for the user who is about to start it.

    Attributes:
        free: bytes that the device has beside the base; None where the system does not report them.
        fits: the run fits, or `free` is unknown.
        calibrated: an earlier run on the same base measured a step.
        text: the same in one or two sentences.
    """

    estimate: Estimate
    free: int | None
    fits: bool
    calibrated: bool
    text: str


def estimate(shape: ModelShape, spec: TrainSpec, ratio: float = 1.0) -> Estimate:
    """What a spec needs on a base of this shape, at its longest batch.

    Args:
        ratio: measured over estimated step memory, from a run on the same base.
    """
    named = [leaf for name in spec.target_modules for leaf in shape.groups.get(name, (name,))]
    targets = named or shape.targets or tuple(shape.linear)
    linear = [shape.linear[t] for t in targets if t in shape.linear]
    count, inputs, outputs = (sum(layer[n] for layer in linear) for n in range(3))
    weights = spec.rank * (inputs + outputs)
    tokens, number = spec.batch_size * spec.max_length, shape.number_bytes
    if spec.optimizer == "adafactor":
        moments = 4 * (inputs + outputs + 2 * spec.rank * count)  # one row and one column per matrix
    else:
        moments = OPTIMIZER_BYTES.get(spec.optimizer, 8) * weights
    # A layer keeps the inputs and outputs of two norms, the query, the attention's output and two residuals
    # (8 h), keys and values (k), and four tensors of the feed-forward (4 i).
    layer_bytes = number * (8 * shape.hidden + shape.keys_values + 4 * shape.inner)
    # An adapter keeps its input in float32 where that is a copy, once more with the dropout mask, and r
    # numbers.
    copies = (4 if number < 4 else 0) + (5 if spec.dropout else 0)
    lean = is_lean(spec, shape.on_gpu) and number == 4
    if lean:
        # The inputs and outputs of two norms, the query, the attention's output; two of the feed-forward.
        layer_bytes = number * (6 * shape.hidden + shape.keys_values + 2 * shape.inner)
        copies = 1 if spec.dropout else 0
    adapter_bytes = (copies * inputs + 4 * spec.rank * count) / max(1, shape.layers)
    if spec.has_gradient_checkpointing(shape.on_gpu):
        token_bytes = shape.layers * number * shape.hidden + layer_bytes + adapter_bytes
    else:
        token_bytes = shape.layers * (layer_bytes + adapter_bytes)
    # logits as computed, in float32, and their gradient; in blocks, the hidden states and theirs
    logit_bytes = shape.vocabulary * (number + 8)
    block_bytes = 0
    if lean:
        block_bytes = 2 * min(BLOCK_BYTES, tokens * shape.vocabulary * number)
        logit_bytes = 2 * number * shape.hidden
    return Estimate(
        base=shape.base_bytes,
        adapter=4 * weights,
        gradients=4 * weights,
        optimizer=moments,
        activations=int(ratio * tokens * token_bytes),
        logits=int(ratio * (tokens * logit_bytes + block_bytes)),
    )


def is_lean(spec: TrainSpec, on_gpu: bool) -> bool:
    """Whether a run takes the loss of `core.train.lean`, if the base passes its check.

    Noise on the embeddings depends on the length of a row, and a layer that is computed again in the backward
    has to find the same forward as before.
    """
    return (
        spec.rules >= LEAN_RULES
        and not on_gpu
        and not spec.neftune_alpha
        and not spec.has_gradient_checkpointing(on_gpu)
    )


def available_bytes(on_gpu: bool) -> int | None:
    """Bytes that the device still has for a run; None where the system does not report them.

    On a CPU, the smaller of what the system reports as available and what the control group still allows.
    """
    if on_gpu:
        import torch

        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return free
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        return min(free, int(limit) - used)
    except (OSError, ValueError):
        return free


def report_memory(shape: ModelShape, spec: TrainSpec, ratio: float | None, free: int | None) -> MemoryReport:
    """Compares the estimate of a run with the free memory.

    Args:
        ratio: measured over estimated step memory, from an earlier run on this base; None if there was none.
        free: bytes that the device still has beside the base.
    """
    need = estimate(shape, spec, ratio or 1.0)
    extra = need.total - need.base
    basis = "measured on this base" if ratio else "estimated"
    text = f"Needs about {format_bytes(extra)} in addition to the base's {format_bytes(need.base)} ({basis})"
    if free is None:
        text += "."
    elif extra <= free:
        text += f"; {format_bytes(free)} are free."
    else:
        text += f", and only {format_bytes(free)} are free. "
        best = next(iter(advice(shape, spec, ratio or 1.0)), None)
        text += f"{best} would help most." if best else "The batch will be made smaller until it fits."
    return MemoryReport(need, free, free is None or extra <= free, ratio is not None, text)


def advice(shape: ModelShape, spec: TrainSpec, ratio: float = 1.0) -> list[str]:
    """Up to three changes of the settings that save most, each with its saving, the largest first."""
    changes: list[tuple[str, dict[str, Any]]] = []
    if spec.max_length >= 32:
        half = spec.max_length // 2
        changes.append((f"max length {half} instead of {spec.max_length}", {"max_length": half}))
    if not spec.has_gradient_checkpointing(shape.on_gpu):
        changes.append(("gradient checkpointing", {"gradient_checkpointing": "on"}))
    if spec.batch_size > 1:
        changes.append((f"batch size 1 instead of {spec.batch_size}", {"batch_size": 1}))
    if spec.rank > 1:
        changes.append((f"rank {spec.rank // 2} instead of {spec.rank}", {"rank": spec.rank // 2}))
    if spec.dropout:
        changes.append(("no LoRA dropout", {"dropout": 0.0}))
    if spec.optimizer in ("auto", "adamw"):
        changes.append(("the optimizer adafactor", {"optimizer": "adafactor"}))
    total = estimate(shape, spec, ratio).total
    savings = sorted(
        ((total - estimate(shape, replace(spec, **fields), ratio).total, text) for text, fields in changes),
        reverse=True,
    )
    return [
        f"{text[0].upper()}{text[1:]} (saves about {format_bytes(saving)})"
        for saving, text in savings[:3]
        if saving > 0
    ]


def shrink_micro_batch(batch_size: int, accumulation: int) -> tuple[int, int] | None:
    """The next smaller micro-batch of the same effective batch; None if the batch size is 1.

    Usually half the batch size and twice the accumulation; otherwise the largest divisor of the effective
    batch that is at most half the batch size.

    Returns:
        (batch size, accumulation)
    """
    effective = batch_size * accumulation
    rows = next((b for b in range(batch_size // 2, 0, -1) if effective % b == 0), None)
    return (rows, effective // rows) if rows else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the system has no memory left."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error) and "memory" in str(error)


def format_bytes(count: float) -> str:
    """Bytes as text, such as "1.4 GB" or "12 MB"."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{max(count, 0) / 1e6:.1f} MB"
