"""Values of a tensor as bytes of bfloat16, float16 or float32, rounded to the nearest, ties to even."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from core.errors import SpecError
from core.gguf.model_tensors import Precision

if TYPE_CHECKING:
    import numpy as np

# Of each precision: torch's type, and the names that transformers and files use.
TORCH_TYPES: dict[Precision, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
}
CONFIG_NAMES: dict[Precision, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
OF_SPEC: dict[str, Precision] = {"bf16": "BF16", "f16": "F16", "f32": "F32"}


def to_bytes(values: np.ndarray[Any, Any], precision: Precision, name: str) -> bytes:
    """Rounds values and returns their bytes, little-endian.

    Args:
        values: float32, of any shape.
        name: of the tensor, for the error.

    Raises:
        SpecError: a value is too large for the precision.
    """
    exact = torch.from_numpy(values)
    rounded = exact.to(TORCH_TYPES[precision]).contiguous()
    if precision != "F32" and not torch.equal(torch.isfinite(rounded), torch.isfinite(exact)):
        raise SpecError(
            f"The tensor {name} has values up to {float(exact.abs().max()):.3g}, "
            f"which {CONFIG_NAMES[precision]} cannot hold.",
            "Choose bf16 or f32." if precision == "F16" else "Choose f32.",
        ).at("precision")
    whole: bytes = torch.atleast_1d(rounded).view(torch.uint8).numpy().tobytes()
    return whole
