"""Whether answers come from packed 8-bit weights: a probe of a base on this machine, and its result.

The probe times one decoding step of both precisions, and compares their next tokens on a short text. It is
run once per base and machine; the engine keeps the result in the workspace. Losses, evaluations and training
always use the base's own precision.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from core.errors import BaseModelError
from core.model.decoding import CausalDecoder, all_logits
from core.model.fast_decoding import PackedDecoder
from core.model.fast_kernels import compile_kernels
from core.model.fast_layers import PackedBase, pack_base, unpackable_reason
from core.model.mixing import Mixer

LEAST_PARAMETERS = 50_000_000  # smaller bases are fast enough, and 8 bits cost them more
LEAST_SPEEDUP = 1.3
LEAST_AGREEMENT = 0.9  # of the most likely next tokens
TIMED_STEPS = 4
VERSION = 2  # of the kernels and the probe; another one makes stored results void
TEXT = (
    "The ferry leaves at eight in the morning and needs forty minutes to the island. On the pier a woman "
    "sells bread and warm milk. In 1911 a storm broke the old bridge, so the council built a new one of "
    "stone. Water boils at 100 degrees, and ice melts at zero. To add two numbers in Python, write "
    "def add(a, b): return a + b. My brother asked whether the shop was open; I told him that it closes on "
    "Sundays. Iron, copper and tin are metals, oak and birch are trees, and a sparrow is a small bird."
)


@dataclass(frozen=True)
class Probe:
    """What a base's packed weights gain and cost on this machine.

    Attributes:
        speedup: seconds of one decoding step in the base's own precision / with packed weights.
        agreement: share of positions of the text with the same most likely next token.
        largest_difference: of two logits.
        machine: the processor, its threads and the version; a stored probe of another one is void.
    """

    speedup: float
    agreement: float
    largest_difference: float
    machine: str

    @property
    def is_worth_it(self) -> bool:
        """Whether answers come from the packed weights where the user left the choice to the studio."""
        return self.speedup >= LEAST_SPEEDUP and self.agreement >= LEAST_AGREEMENT

    def to_json(self) -> dict[str, Any]:
        """The record that the workspace keeps."""
        return asdict(self)


def describe_machine() -> str:
    """Returns what a probe's result depends on beside the base."""
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, v{VERSION}"


def read_probe(record: Any) -> Probe | None:
    """Returns a stored probe, or None where it is damaged or from another machine."""
    try:
        probe = Probe(
            float(record["speedup"]),
            float(record["agreement"]),
            float(record["largest_difference"]),
            str(record["machine"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
    return probe if probe.machine == describe_machine() else None


def exact_reason(base: Any, forced: bool = False) -> str:
    """Returns why a base answers in its own precision, or "".

    Args:
        forced: whether the user chose the packed weights; otherwise the studio chooses.
    """
    if reason := unpackable_reason(base):
        return reason
    if base.parameters < LEAST_PARAMETERS and not forced:
        return "a small base is fast enough in its own precision"
    return ""


def pack_for_answers(base: Any, is_stopped: Callable[[], bool] = lambda: False) -> PackedBase | None:
    """Packs a base and compiles the kernels; a thread beside the model's may do it, as weights are only read.

    Args:
        is_stopped: whether the result is not needed any more.

    Returns:
        The packed weights, or None once `is_stopped`.

    Raises:
        BaseModelError: the base cannot be packed, or the kernels cannot be compiled here.
    """
    if reason := unpackable_reason(base):
        raise BaseModelError(f"{base.name!r} cannot answer in 8 bits: {reason}.", "Choose exact answers.")
    packing = pack_base(base)
    while not is_stopped():
        try:
            next(packing)
        except StopIteration as end:
            packed: PackedBase = end.value
            break
    else:
        return None
    try:
        for block in packed.blocks:
            compile_kernels(block)
    except (ImportError, OSError, RuntimeError) as e:
        raise BaseModelError(
            f"8-bit answers need llvmlite, and it does not work here ({str(e).splitlines()[0][:200]}).",
            "Install it (pip install llvmlite==0.50.0), or choose exact answers.",
        ) from e
    return packed


def measure(base: Any, packed: PackedBase, mixer: Mixer) -> Probe:
    """Compares a base's packed weights with its own precision, without adapters."""
    ids = base.tokenizer(TEXT, add_special_tokens=False).input_ids[: base.context // 2]
    fast = PackedDecoder(base, packed, mixer, [ids], TIMED_STEPS)
    exact = CausalDecoder(base, [ids], TIMED_STEPS)
    with torch.inference_mode(), mixer.activate([{}]):
        ours = fast.all_logits()
        reference = all_logits(base.model, torch.tensor([ids]))[0].float()
        exact.step()
        seconds = []
        for decoder in (exact, fast):
            times = []
            for _ in range(TIMED_STEPS - 1):
                decoder.append(reference[-1:].argmax(-1))
                begin = time.perf_counter()
                decoder.step()
                times.append(time.perf_counter() - begin)
            seconds.append(min(times))
    agreement = (ours.argmax(-1) == reference.argmax(-1)).float().mean()
    return Probe(
        round(seconds[0] / seconds[1], 2),
        round(float(agreement), 4),
        round(float((ours - reference).abs().max()), 3),
        describe_machine(),
    )
