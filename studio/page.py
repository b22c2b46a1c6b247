"""Gradio's application, with a shorter way for the values of the studio's components.

Gradio (6.31) hands every value of an event to a thread of its own, searches it for files, and builds
another component for each output that an event updates. Thirty pages that open at once send thousands of
values, nearly all of them JSON that is the same on both sides.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio import processing_utils
from gradio.block_function import BlockFunction
from gradio.blocks import Block, convert_component_dict_to_list, postprocess_update_dict, skip
from gradio.components.base import _Keywords
from gradio.state_holder import SessionState
from gradio.utils import is_prop_update

from studio.edits import list_edits

# Updates of these properties leave the component on the server as it is.
SHOWN_PROPERTIES = {"__type__", "value", "visible", "interactive"}
VARIANT_LIMIT = 2000  # components with other properties than at first; the oldest is forgotten first


class Page(gr.Blocks):  # type: ignore[misc]
    """The page. What its methods do not know, Gradio's own do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._variants: OrderedDict[str, Block] = OrderedDict()  # of components, by their properties

    async def preprocess_data(
        self,
        block_fn: BlockFunction,
        inputs: list[Any],
        state: SessionState | None,
        explicit_call: bool = False,
    ) -> list[Any]:
        """The values of a handler's arguments."""
        if state is None or explicit_call or block_fn.component_prop_inputs or _has_files(block_fn.inputs):
            theirs: list[Any] = await super().preprocess_data(block_fn, inputs, state, explicit_call)
            return theirs
        self.validate_inputs(block_fn, inputs)
        values = []
        for block, value in zip(block_fn.inputs, inputs, strict=True):
            current = state[block._id]
            if not block.stateful:
                if isinstance(value, (dict, list)):  # it may name a file
                    value = await processing_utils.async_move_files_to_cache(
                        value, current, check_in_upload_folder=True
                    )
                current = current.preprocess(value) if block_fn.preprocess else value
            values.append(current)
        return values

    async def postprocess_data(
        self, block_fn: BlockFunction, predictions: list[Any] | dict[Any, Any], state: SessionState | None
    ) -> list[Any]:
        """What is sent to the page for a handler's result."""
        theirs: list[Any]
        if state is None or block_fn.batch or _has_files(block_fn.outputs):
            theirs = await super().postprocess_data(block_fn, predictions, state)
            return theirs
        if isinstance(predictions, dict) and predictions == skip() and len(block_fn.outputs) > 1:
            predictions = [skip()] * len(block_fn.outputs)
        if isinstance(predictions, dict) and predictions:
            predictions = convert_component_dict_to_list(list(block_fn.outputs), predictions)
        shown = [predictions] if len(block_fn.outputs) == 1 else list(predictions)
        if len(shown) < len(block_fn.outputs) or any(isinstance(v, SimpleNamespace) for v in shown):
            theirs = await super().postprocess_data(block_fn, predictions, state)
            return theirs
        return [
            self._show(block, value, state, block_fn.postprocess)
            for block, value in zip(block_fn.outputs, shown, strict=False)
        ]

    def handle_streaming_diffs(
        self,
        block_fn: BlockFunction,
        data: list[Any],
        session_hash: str | None,
        run: str | None,
        final: bool,
        simple_format: bool = False,
    ) -> list[Any]:
        """What is sent of the next values of a stream: the edits of `studio.edits`."""
        streams = self.pending_diff_streams[session_hash] if session_hash is not None and run else {}
        before = list(streams.get(run, ())) if not (final or simple_format) else []
        whole: list[Any] = super().handle_streaming_diffs(block_fn, data, session_hash, run, final, True)
        if not before:
            return whole
        return [list_edits(before[i] if i < len(before) else None, value) for i, value in enumerate(whole)]

    def _show(self, block: Block, value: Any, state: SessionState, converts: bool) -> Any:
        """What is sent to the page for one output of a handler.

        Args:
            converts: whether the component converts its value.
        """
        if value is _Keywords.FINISHED_ITERATING:  # the end of a generator
            return None
        if isinstance(value, Block):
            value = {**value.constructor_args, "__type__": "update"}
        is_update = is_prop_update(value)
        if block.stateful:
            if not is_update or "value" in value:
                state[block._id] = value["value"] if is_update else value
            return None
        if not is_update:
            return state[block._id].postprocess(value) if converts else value
        update = {k: v for k, v in value.items() if v is not None or k == "value"}
        if not update.keys() <= SHOWN_PROPERTIES:
            arguments = {**state[block._id].constructor_args, **update, "render": False}
            state[block._id] = self._make_variant(
                block, {k: v for k, v in arguments.items() if k not in ("value", "__type__")}
            )
            return postprocess_update_dict(state[block._id], update, converts)
        if "value" in update and converts:
            update["value"] = state[block._id].postprocess(update["value"])
        return update

    def _make_variant(self, block: Block, arguments: dict[str, Any]) -> Block:
        """A component with other properties. Pages with the same ones share it: it only converts values."""
        key = f"{block._id} {sorted(arguments.items(), key=itemgetter(0))!r}"
        variant = self._variants.get(key)
        if variant is None:
            variant = self._variants[key] = type(block)(**arguments)
            if len(self._variants) > VARIANT_LIMIT:
                self._variants.popitem(last=False)
        return variant


def _has_files(blocks: Sequence[Block]) -> bool:
    """Whether one of the components has a model of its data, as those for files do."""
    return any(getattr(block, "data_model", None) for block in blocks)
