"""The weights of a base with the update of adapters added, in fp32, a few rows at a time.

    W' = W + s B A            of a Linear layer, whose weight is (outputs, inputs)
    W' = W + (s B A)^T        of a Conv1D layer (GPT-2), whose weight is (inputs, outputs)

An output layer that shares its weight with the embedding gets a tensor of its own when the update touches it,
because the sum would otherwise change the embedding, too.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from core.errors import BaseModelError
from core.export.base_layout import BaseLayout, build_empty_model
from core.export.own_forms import OwnForm
from core.export.sources import ExportSource
from core.gguf.model_tensors import ModelTensors, Precision

if TYPE_CHECKING:
    import numpy as np

TIE = "tie_word_embeddings"
SCALE = "scale_decoder_outputs"  # of T5: its head is scaled while it is tied


@dataclass(frozen=True)
class _Update:
    """What is added to a tensor: rows b to e of it are `left[b:e] @ right`."""

    left: np.ndarray[Any, Any]
    right: np.ndarray[Any, Any]


class MergedTensors:
    """A base with the update of adapters; it implements `core.gguf.model_tensors.ModelTensors`.

    Args:
        base: the tensors of the base's own files, in the base's own precision.

    Raises:
        BaseModelError: a parameter of the base has no tensor, or an update has none that it can be added to.
    """

    def __init__(self, base: ModelTensors, source: ExportSource) -> None:
        self._base, self._layout = base, source.layout
        self.config: dict[str, Any] = copy.deepcopy(base.config)
        self._places = _find_places(source.layout, base.shapes)
        self._updates: dict[str, _Update] = {}  # name of a tensor -> what is added
        self._origins: dict[str, str] = {}  # name of a tensor that is added -> of the one that it begins as
        self._multipliers: dict[str, float] = {}
        self._magnitudes: dict[str, np.ndarray[Any, Any]] = {}  # of DoRA: one number per output
        self._replacements: dict[str, np.ndarray[Any, Any]] = {}  # a whole tensor
        self._column_norms: dict[str, np.ndarray[Any, Any]] = {}  # of DoRA on Conv1D layers
        self._rows: dict[str, dict[int, np.ndarray[Any, Any]]] = {}  # row -> its values
        for module in source.modules:
            self._add_update(module, source)
        if source.own_form:
            self._add_own_form(source.own_form)
        if self.own_weights:
            self._untie()
        self.shapes: dict[str, tuple[int, ...]] = {
            **base.shapes,
            **{name: base.shapes[origin] for name, origin in self._origins.items()},
        }

    @property
    def own_weights(self) -> tuple[str, ...]:
        """The parameters that share their weight in the base, and have an updated one of their own here."""
        return tuple(p for p in _groups_of(self._layout) if self._is_changed(self._name_of(p)))

    def dtype_of(self, name: str) -> Precision:
        """How precisely the values of the base are stored."""
        return self._base.dtype_of(self._origins.get(name, name))

    def read(self, name: str, begin_row: int = 0, end_row: int | None = None) -> np.ndarray[Any, Any]:
        """The float32 values of some rows of a tensor; see `ModelTensors.read`."""
        if name in self._replacements:
            values = self._replacements[name][begin_row:end_row]
        else:
            values = self._base.read(self._origins.get(name, name), begin_row, end_row)
        if update := self._updates.get(name):
            values = values + update.left[begin_row:end_row] @ update.right
        if name in self._magnitudes:
            values = self._rescale(name, values, begin_row, end_row)
        if rows := self._rows.get(name):
            values = values.copy()
            for row in (r for r in rows if begin_row <= r < begin_row + len(values)):
                values[row - begin_row] = rows[row]
        return values * self._multipliers[name] if name in self._multipliers else values

    def _rescale(
        self, name: str, values: np.ndarray[Any, Any], begin_row: int, end_row: int | None
    ) -> np.ndarray[Any, Any]:
        """DoRA: gives every output its magnitude. Outputs are rows, or columns of a Conv1D layer."""
        import numpy as np

        norms = self._column_norms.get(name)
        if norms is not None:
            scaled: np.ndarray[Any, Any] = values * (self._magnitudes[name] / norms)
        else:
            norms = np.linalg.norm(values, axis=1)
            scaled = values * (self._magnitudes[name][begin_row:end_row] / norms)[:, None]
        return scaled

    def _compute_column_norms(self, name: str) -> np.ndarray[Any, Any]:
        """|W + s B A| of every output of a Conv1D layer: of its columns."""
        import numpy as np

        update = self._updates[name]
        norms: np.ndarray[Any, Any] = np.linalg.norm(
            self._base.read(name) + update.left @ update.right, axis=0
        )
        return norms

    def _is_changed(self, name: str) -> bool:
        return name in self._updates or name in self._replacements or name in self._rows

    def _name_of(self, parameter: str) -> str:
        """The name of the tensor that holds a parameter, or will hold it."""
        return self._places.get(parameter, parameter)

    def _claim(self, parameter: str) -> str:
        """The name of the tensor that will hold a changed parameter."""
        if parameter not in self._places:
            twin = _find_twin(self._layout, parameter, self._places)
            if twin is None:
                raise BaseModelError(
                    f"The files of {self._layout.name!r} have no tensor for "
                    f"{parameter.rpartition('.')[0]} alone, so its update cannot be added.",
                    "Export a PEFT adapter, which leaves the base as it is.",
                )
            self._origins[parameter] = self._places[twin]
        return self._name_of(parameter)

    def _add_own_form(self, own: OwnForm) -> None:
        """Adds what an adapter has beside its factors."""
        for module, magnitude in own.find_magnitudes().items():
            name = self._claim(f"{module}.weight")
            self._magnitudes[name] = magnitude.float().numpy()
            if self._layout.is_transposed(module):
                self._column_norms[name] = self._compute_column_norms(name)
        for parameter, weights in own.find_replacements().items():
            self._replacements[self._claim_shape(parameter, tuple(weights.shape))] = weights.float().numpy()
        for parameter, (ids, vectors) in own.find_tokens().items():
            if parameter in _groups_of(self._layout):
                raise BaseModelError(
                    f"The adapter has trained tokens in {parameter}, which shares its weight with another "
                    "layer of this base.",
                    "Export it as PEFT.",
                )
            size = self._layout.parameters.get(parameter, (0, 0))
            name = self._claim_shape(parameter, (size[0], vectors.shape[1]))
            self._rows[name] = dict(zip(ids, vectors.float().numpy(), strict=True))

    def _claim_shape(self, parameter: str, shape: tuple[int, ...]) -> str:
        """`_claim`, for a parameter that the base has in this shape.

        Raises:
            BaseModelError: the base has another shape.
        """
        found = self._layout.parameters.get(parameter)
        if found != shape:
            raise BaseModelError(
                f"The adapter replaces {parameter} by one of the shape {list(shape)}, and the base has "
                f"{list(found) if found else 'none'}.",
                "Choose an adapter that was trained on this base.",
            )
        return self._claim(parameter)

    def _add_update(self, module: str, source: ExportSource) -> None:
        name = self._claim(f"{module}.weight")
        factors = source.factors(module)
        left, right = (f.to(torch.float32).contiguous() for f in (factors.b, factors.a))
        if self._layout.is_transposed(module):
            left, right = right.T.contiguous(), left.T.contiguous()
        self._updates[name] = _Update(left.numpy(), right.numpy())

    def _untie(self) -> None:
        """Gives the other parameters of a shared weight a tensor without the update; changes the config."""
        for config in (self.config, self.config.get("text_config")):
            if isinstance(config, dict):
                config[TIE] = False
        scale = getattr(self._layout.config, SCALE, None)
        if scale is not None:
            self.config[SCALE] = False
        for parameter in self.own_weights:
            if scale:  # the factor of a tied head goes into its own weight
                self._multipliers[self._name_of(parameter)] = float(self._layout.config.d_model) ** -0.5
        after = build_empty_model(self._layout.family, _untie_config(self._layout.config))
        ties = dict(getattr(after, "all_tied_weights_keys", None) or {})
        for parameter in self.own_weights:
            for member in _groups_of(self._layout)[parameter]:
                name = self._name_of(member)
                if self._is_changed(name) or name in self._base.shapes or name in self._origins:
                    continue
                partner = self._name_of(ties.get(member, ""))
                if partner in self._base.shapes and not self._is_changed(partner):
                    continue  # it stays tied to a weight that does not change
                self._origins[name] = self._origins.get(self._name_of(parameter), self._name_of(parameter))


def _find_places(layout: BaseLayout, names: Iterable[str]) -> dict[str, str]:
    """Parameter -> the tensor that holds it and nothing else.

    Raises:
        BaseModelError: a parameter has no tensor, so that a random one would be exported.
    """
    places: dict[str, str] = {}
    filled = set()
    for name, (parameter, is_part) in layout.map_tensors(names).items():
        filled.add(parameter)
        if not is_part:
            places[parameter] = name
    for parameter in layout.parameter_names:
        if parameter not in filled and _find_twin(layout, parameter, filled) is None:
            raise BaseModelError(
                f"The files of {layout.name!r} have no tensor for {parameter}.",
                "Copy or download the base again.",
            )
    return places


def _groups_of(layout: BaseLayout) -> dict[str, list[str]]:
    """Parameter that shares its weight -> all parameters that share it."""
    by_root: dict[str, list[str]] = {}
    for parameter, root in layout.ties.items():
        by_root.setdefault(root, [root]).append(parameter)
    return {parameter: members for members in by_root.values() for parameter in members}


def _find_twin(layout: BaseLayout, parameter: str, present: Container[str]) -> str | None:
    """A parameter among `present` that shares its weight with this one."""
    return next((p for p in _groups_of(layout).get(parameter, []) if p in present), None)


def _untie_config(config: Any) -> Any:
    """The config as it is read again; some models (T5) share weights whatever it says."""
    return type(config).from_dict({**config.to_dict(), TIE: False})
