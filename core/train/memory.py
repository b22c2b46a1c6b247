"""What a run needs of the device's memory: an estimate before it starts, a measurement of one real step, advice when it is too much.

Knows a model's shape, a spec and how a device is asked what it has. Knows nothing of runs. Bytes throughout.

    total = base + adapter + gradients + optimizer + activations + logits

What a step keeps for its backward is counted operation by operation, as Korthikanti et al. 2022 do (arXiv
2205.05198, section 4.1), for a frozen base: its own weights get no gradient, so the input of a linear layer is kept
only for the adapter on it. Letters: T tokens of a micro-batch, h hidden size, i feed-forward size, k width of keys
and values together, L layers, r rank, V vocabulary.
"""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from core.spec.training import TrainSpec

OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # a weight; two moments
MIN_GROWTH_BYTES = 32 << 20  # a smaller measured growth says more of the allocator than of the step
MEMINFO, STATUS, RESET, LIMIT = (
    Path("/proc/meminfo"),
    Path("/proc/self/status"),
    Path("/proc/self/clear_refs"),
    Path("/sys/fs/cgroup"),
)


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides its memory.

    Attributes:
        linear: leaf name of linear layers -> (how many, sum of their inputs, sum of their outputs).
        number_bytes: of an activation.
        base_bytes: of the frozen base as it lies in memory.
        targets: leaf names that get an adapter when the spec names none; empty means all linear layers.
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

    @classmethod
    def from_base(cls, base: Any) -> ModelShape:
        """Of a resident base; on the model's thread."""
        config = base.model.config.get_text_config()
        head = base.model.get_output_embeddings()
        linear: dict[str, tuple[int, int, int]] = {}
        for path, module in base.model.named_modules():
            inside = getattr(module, "base_layer", module)
            size = _size(inside)
            if size and inside is not head and not path.endswith(".base_layer") and ".lora_" not in path:
                leaf = path.rpartition(".")[2]
                count, into, out = linear.get(leaf, (0, 0, 0))
                linear[leaf] = (count + 1, into + size[0], out + size[1])
        hidden = int(config.hidden_size)
        heads = int(getattr(config, "num_attention_heads", 0) or 1)
        head_size = int(getattr(config, "head_dim", 0) or hidden // heads)
        return cls(
            layers=int(config.num_hidden_layers),
            hidden=hidden,
            inner=int(getattr(config, "intermediate_size", 0) or getattr(config, "d_ff", 0) or 4 * hidden),
            keys_values=2 * int(getattr(config, "num_key_value_heads", 0) or heads) * head_size,
            vocabulary=int(config.vocab_size),
            linear=linear,
            number_bytes=next(
                (p.element_size() for p in base.model.parameters() if p.is_floating_point()), 4
            ),
            base_bytes=int(base.model.get_memory_footprint()),
            on_gpu=base.device.type == "cuda",
            targets=() if "all-linear" in base.family.targets else tuple(base.family.targets),
        )


def _size(module: Any) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, GPT-2's kind too; None of anything else."""
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
        """What a forward and a backward come and go with."""
        return self.activations + self.logits + self.gradients

    @property
    def total(self) -> int:
        return self.base + self.adapter + self.gradients + self.optimizer + self.activations + self.logits

    def to_json(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


def estimate(shape: ModelShape, spec: TrainSpec, ratio: float = 1.0) -> Estimate:
    """What a spec needs on a base of this shape, at its longest batch.

    Args:
        ratio: measured over estimated step memory, from a run on the same base.
    """
    wanted = spec.target_modules or shape.targets or tuple(shape.linear)
    parts = [shape.linear[t] for t in wanted if t in shape.linear]
    count, into, out = (sum(p[n] for p in parts) for n in range(3))
    weights = spec.rank * (into + out)
    tokens, number = spec.batch_size * spec.max_length, shape.number_bytes
    if spec.optimizer == "adafactor":
        moments = 4 * (into + out + 2 * spec.rank * count)  # a row and a column of each matrix
    else:
        moments = OPTIMIZER_BYTES.get(spec.optimizer, 8) * weights
    # A layer keeps two norms' inputs and outputs, the query, the attention's output and two residuals (8 h), keys and
    # values (k), and four tensors of the feed-forward. An adapter keeps its input in 32 bits where that is a copy,
    # once more with the mask where it is dropped out, and r numbers.
    layer = number * (8 * shape.hidden + shape.keys_values + 4 * shape.inner)
    copies = (4 if number < 4 else 0) + (5 if spec.dropout else 0)
    adapters = (copies * into + 4 * spec.rank * count) / max(1, shape.layers)
    checkpointed = spec.uses_gradient_checkpointing(shape.on_gpu)
    kept = (
        shape.layers * number * shape.hidden + layer + adapters
        if checkpointed
        else shape.layers * (layer + adapters)
    )
    return Estimate(
        base=shape.base_bytes,
        adapter=4 * weights,
        gradients=4 * weights,
        optimizer=moments,
        activations=int(ratio * tokens * kept),
        logits=int(
            ratio * tokens * shape.vocabulary * (number + 8)
        ),  # as computed, in 32 bits, and their gradient
    )


def available_bytes(on_gpu: bool) -> int | None:
    """Bytes that the device still has for a run; None where nothing tells.

    On a CPU the smaller of what the system says is available and what the control group still allows.
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
        allowed = (LIMIT / "memory.max").read_text(encoding="ascii").strip()
        return (
            free
            if allowed == "max"
            else min(free, int(allowed) - int((LIMIT / "memory.current").read_text(encoding="ascii")))
        )
    except (OSError, ValueError):
        return free


def told(shape: ModelShape, spec: TrainSpec, ratio: float | None, free: int | None) -> dict[str, Any]:
    """Figures and a sentence for whoever is about to start a run.

    Args:
        ratio: as measured by an earlier run on this base, None where there was none.
        free: bytes that the device still has beside the base.
    """
    need = estimate(shape, spec, ratio or 1.0)
    extra = need.total - need.base
    basis = "measured on this base" if ratio else "estimated"
    text = f"Needs about {format_bytes(extra)} beside the base's {format_bytes(need.base)} ({basis})"
    if free is None:
        text += "."
    elif extra <= free:
        text += f"; {format_bytes(free)} are free."
    else:
        best = next(iter(advice(shape, spec, ratio or 1.0)), None)
        text += f", and only {format_bytes(free)} are free. " + (
            f"{best} would help most." if best else "The batch will be made smaller until it fits."
        )
    return {
        **need.to_json(),
        "free": free,
        "fits": free is None or extra <= free,
        "calibrated": ratio is not None,
        "text": text,
    }


def advice(shape: ModelShape, spec: TrainSpec, ratio: float = 1.0) -> list[str]:
    """Up to three settings that would help most, each with what it saves, the most helpful first."""
    now = estimate(shape, spec, ratio).total
    tries: list[tuple[str, dict[str, Any]]] = []
    if spec.max_length >= 32:
        tries.append(
            (
                f"max length {spec.max_length // 2} instead of {spec.max_length}",
                {"max_length": spec.max_length // 2},
            )
        )
    if not spec.uses_gradient_checkpointing(shape.on_gpu):
        tries.append(("gradient checkpointing", {"gradient_checkpointing": "on"}))
    if spec.batch_size > 1:
        tries.append((f"batch size 1 instead of {spec.batch_size}", {"batch_size": 1}))
    if spec.rank > 1:
        tries.append((f"rank {spec.rank // 2} instead of {spec.rank}", {"rank": spec.rank // 2}))
    if spec.dropout:
        tries.append(("no LoRA dropout", {"dropout": 0.0}))
    if spec.optimizer in ("auto", "adamw"):
        tries.append(("the optimizer adafactor", {"optimizer": "adafactor"}))
    saved = sorted(
        ((now - estimate(shape, replace(spec, **changes), ratio).total, text) for text, changes in tries),
        reverse=True,
    )
    return [f"{text[0].upper()}{text[1:]} (saves about {format_bytes(byte)})" for byte, text in saved[:3] if byte > 0]


def shrink_micro_batch(batch_size: int, accumulation: int) -> tuple[int, int] | None:
    """The next smaller micro-batch of the same effective batch, or None at one row.

    Half, and twice the accumulation; of an odd number the largest part below half that divides the effective batch.
    """
    whole = batch_size * accumulation
    rows = next((b for b in range(batch_size // 2, 0, -1) if whole % b == 0), None)
    return (rows, whole // rows) if rows else None


def is_out_of_memory(error: BaseException) -> bool:
    """Is this the device's or the system's word for having no memory left?"""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error) and "memory" in str(error)


def format_bytes(count: float) -> str:
    """Bytes as people say them."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{max(count, 0) / 1e6:.1f} MB"


class MemoryMeter:
    """Measures how far memory grows from its making to `grown()`.

    On a GPU that is torch's allocated memory; on a CPU the resident set of the whole process, whose peak Linux lets us
    reset. Memory that the process had kept for itself is used again without a growth, so a small figure is a lower bound.
    """

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.what = "allocated by torch" if on_gpu else "resident set of the process"
        gc.collect()
        if on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._start: int | None = int(torch.cuda.memory_allocated())
            return
        try:
            RESET.write_text("5", encoding="ascii")  # see proc(5)
            self._start = _resident("VmRSS")
        except OSError:
            self._start = None

    def growth(self) -> int | None:
        """Bytes at the peak above the start; None where the system does not tell."""
        if self._start is None:
            return None
        if self.on_gpu:
            import torch

            return int(torch.cuda.max_memory_allocated()) - self._start
        peak = _resident("VmHWM")
        return None if peak is None else max(0, peak - self._start)


def _resident(which: str) -> int | None:
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(which + ":"):
            return int(line.split()[1]) * 1024
    return None


def ratio_of(measured: int | None, estimated: int) -> float | None:
    """Measured over estimated step memory, where the measurement says something; kept within a factor of four."""
    if measured is None or measured < MIN_GROWTH_BYTES or estimated <= 0:
        return None
    return round(min(4.0, max(0.25, measured / estimated)), 3)


def probe_step(trainer: Any, spec: TrainSpec, base: Any) -> dict[str, Any]:
    """One forward and backward of the longest batch, for its memory; the run notices nothing of it.

    Args:
        trainer: a StudioTrainer whose model is ready to train.

    Returns:
        what of it was estimated and measured; `ratio` is None where the measurement says too little.
    """
    import torch

    sizes = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    longest = sorted(range(len(sizes)), key=lambda i: -sizes[i])[: trainer.args.per_device_train_batch_size]
    batch = trainer.data_collator([trainer.train_dataset[i] for i in longest])
    shape = ModelShape.from_base(base)
    need = estimate(shape, replace(spec, max_length=max(16, sizes[longest[0]]), batch_size=len(longest)))
    batch.pop("row_lengths", None)  # for counting only, the model does not take it
    count = trainer._get_num_items_in_batch([batch], trainer.args.device)
    trainer.model_wrapped.train()
    meter = MemoryMeter(shape.on_gpu)
    with torch.random.fork_rng():
        trainer.compute_loss(
            trainer.model_wrapped, trainer._prepare_inputs(batch), num_items_in_batch=count
        ).backward()
    measured = meter.growth()
    trainer.model_wrapped.zero_grad()
    return {
        "rows": len(longest),
        "length": sizes[longest[0]],
        "estimated_step": need.step,
        "measured_step": measured,
        "measured_as": meter.what,
        "ratio": ratio_of(measured, need.step),
        "free": available_bytes(shape.on_gpu),
    }
