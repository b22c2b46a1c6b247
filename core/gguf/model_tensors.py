"""The weights of a model that is written in another form, read a few rows at a time, without torch.

    ModelTensors              what a writer needs: config, shapes, and float32 values of any rows
    └── FolderTensors         of a folder of transformers: model.safetensors, or shards with their index

`core.export.merged_tensors` adds the update of adapters to the tensors of a folder.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

from core.errors import BaseModelError

if TYPE_CHECKING:
    import numpy as np

Precision = Literal["BF16", "F16", "F32"]

VALUE_BYTES: dict[str, int] = {"BF16": 2, "F16": 2, "F32": 4}
HEADER_LIMIT = 100_000_000  # bytes of JSON, as in safetensors
CONFIG_LIMIT = 16 << 20
INDEX_LIMIT = 64 << 20
MASK_TYPES = ("BOOL", "U8", "I8", "I16", "I32", "I64")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_COPY_AGAIN = "Copy or download the folder again."


class ModelTensors(Protocol):
    """The weights of a model.

    Attributes:
        config: the content of config.json.
        shapes: name in the checkpoint of transformers -> shape, rows first.
    """

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def dtype_of(self, name: str) -> Precision:
        """How precisely the values are stored."""

    def read(self, name: str, begin_row: int = 0, end_row: int | None = None) -> np.ndarray[Any, Any]:
        """The float32 values of some rows of a tensor; of a vector, of some of its values.

        Args:
            end_row: the first row that is not read; None reads all to the end.
        """


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: the file, its type there, its shape, and the position of its first byte."""

    path: Path
    dtype: Precision
    shape: tuple[int, ...]
    start: int


class FolderTensors:
    """The weights of a folder that transformers can load. No file stays open, and none is read whole.

    Args:
        folder: with config.json, and model.safetensors or shards.

    Raises:
        BaseModelError: a file is missing or damaged, or has values that are not BF16, F16 or F32.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = self._read_object("config.json", CONFIG_LIMIT)
        self._places: dict[str, _Place] = {}
        for name in self._list_files():
            for tensor, place in self._read_header(name).items():
                if tensor in self._places:
                    self._fail(f"two of its files have the tensor {tensor}")
                self._places[tensor] = place
        if not self._places:
            self._fail("its files have no tensors")
        self.shapes = {tensor: place.shape for tensor, place in self._places.items()}

    def dtype_of(self, name: str) -> Precision:
        """How precisely the values are stored."""
        return self._places[name].dtype

    def read(self, name: str, begin_row: int = 0, end_row: int | None = None) -> np.ndarray[Any, Any]:
        """The float32 values of some rows of a tensor; see `ModelTensors.read`.

        Raises:
            BaseModelError: the file became shorter, or cannot be read.
        """
        import numpy as np

        place = self._places[name]
        rows = place.shape[0] if place.shape else 1
        end = rows if end_row is None else min(end_row, rows)
        shape = (max(0, end - begin_row), *place.shape[1:]) if place.shape else ()
        row_bytes = math.prod(place.shape[1:]) * VALUE_BYTES[place.dtype]
        count = math.prod(shape) * VALUE_BYTES[place.dtype]
        try:
            with open(place.path, "rb") as file:
                file.seek(place.start + begin_row * row_bytes)
                block = file.read(count)
        except OSError as e:
            self._fail_to_open(place.path.name, e)
        if len(block) != count:
            self._fail(f"{place.path.name} became shorter while it was read")
        if place.dtype == "BF16":
            bits = np.frombuffer(block, dtype="<u2").astype(np.uint32) << 16
            return bits.view(np.float32).reshape(shape)
        kind = "<f2" if place.dtype == "F16" else "<f4"
        return np.frombuffer(block, dtype=kind).astype(np.float32).reshape(shape)

    def _list_files(self) -> list[str]:
        """The names of the weight files: those of the index, or model.safetensors, or all there are."""
        if (self.folder / INDEX).is_file():
            weight_map = self._read_object(INDEX, INDEX_LIMIT).get("weight_map")
            names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
            is_plain = all(isinstance(n, str) and n not in (".", "..") and not set(n) & set("/\\\0:")
                           for n in names)  # fmt: skip
            if not names or not is_plain:
                self._fail(f"{INDEX} does not name its files")
            return sorted(names)
        if (self.folder / WEIGHTS).is_file():
            return [WEIGHTS]
        names = {path.name for path in self.folder.glob("*.safetensors")}
        if not names:
            raise BaseModelError(
                f"{self.folder.name!r} has no *.safetensors weights.",
                "Choose a folder that transformers' save_pretrained wrote.",
            )
        return sorted(names)

    def _read_header(self, name: str) -> dict[str, _Place]:
        path = self.folder / name
        try:
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if not 2 <= size <= min(path.stat().st_size - 8, HEADER_LIMIT):
                    self._fail(f"{name} has no header of safetensors")
                text = file.read(size)
            header = json.loads(text)
            return {
                tensor: self._place(path, tensor, entry, 8 + size)
                for tensor, entry in header.items()
                if tensor != "__metadata__" and not _is_mask(tensor, entry)
            }
        except OSError as e:
            self._fail_to_open(name, e)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
            raise BaseModelError(f"{name} in {self.folder.name!r} is damaged.", _COPY_AGAIN) from e

    def _place(self, path: Path, tensor: str, entry: dict[str, Any], data: int) -> _Place:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if dtype not in VALUE_BYTES:
            raise BaseModelError(
                f"The tensor {tensor} of {self.folder.name!r} has values of the type {dtype}; "
                f"{', '.join(VALUE_BYTES)} can be exported.",
                "Choose the original weights of the model, which are not quantized.",
            )
        if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
            self._fail(f"the tensor {tensor} of {path.name} has an impossible shape")
        if end - begin != math.prod(shape) * VALUE_BYTES[dtype] or data + end > path.stat().st_size:
            self._fail(f"{path.name} does not have all bytes of the tensor {tensor}")
        return _Place(path, dtype, shape, data + begin)

    def _read_object(self, name: str, limit: int) -> dict[str, Any]:
        path = self.folder / name
        try:
            with open(path, "rb") as file:
                text = file.read(limit + 1)
        except OSError as e:
            self._fail_to_open(name, e)
        try:
            value = json.loads(text) if len(text) <= limit else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self._fail(f"{name} is not an object of JSON")
        return value

    def _fail(self, reason: str) -> NoReturn:
        raise BaseModelError(f"{self.folder.name!r} is damaged: {reason}.", _COPY_AGAIN)

    def _fail_to_open(self, name: str, error: OSError) -> NoReturn:
        raise BaseModelError(
            f"{name} in {self.folder.name!r} cannot be read: {error.strerror or error}.",
            "The folder needs config.json, a tokenizer and *.safetensors weights.",
        ) from error


def _is_mask(tensor: str, entry: dict[str, Any]) -> bool:
    """Whether a tensor is a mask or a list of positions, which older checkpoints hold beside the weights."""
    return entry["dtype"] in MASK_TYPES and not tensor.endswith(".weight")
