"""Gradio's application, with a shorter way for the values of the studio's components.

Gradio (6.31) hands every value of an event to a thread of its own, searches it for files, and builds
another component for each output that an event updates. Thirty pages that open at once send thousands of
values, nearly all of them JSON that is the same on both sides.

A page that opens asks for its lists, and what these show fires a dozen further events. While lists of many
pages are due, such further events wait, so that every visitor sees something before anyone sees everything.
"""

from __future__ import annotations

import inspect
import time
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
from gradio.queueing import Event, EventQueue, Queue
from gradio.state_holder import SessionState
from gradio.utils import is_prop_update

from studio.edits import list_edits
from studio.events import EventGroup

# Updates of these properties leave the component on the server as it is.
SHOWN_PROPERTIES = {"__type__", "value", "visible", "interactive"}
FOLLOWING = {"change", "then", "success", "load"}  # triggers of events that a visitor has not fired
LISTS_SECONDS = 2.0  # that they wait for lists at most
MANY_LISTS = 4  # that are due when they begin to wait: few pages have all of theirs at once anyway
VARIANT_LIMIT = 2000  # components with other properties than at first; the oldest is forgotten first


class ListsFirst(Queue):  # type: ignore[misc]
    """The queue of events, from which the lists of many pages are taken first, and what follows last.

    Attributes:
        list_ids: of the queues of the events that make lists (`concurrency_id`).
        due_since: when many lists began to be due, in seconds of `time.monotonic`; 0 while few are.
    """

    list_ids: set[str]
    due_since = 0.0
    event_queue_per_concurrency_id: dict[str, EventQueue]

    def get_events(self) -> tuple[list[Event], bool, str] | None:
        """The next event to run."""
        every = self.event_queue_per_concurrency_id
        lists = {i: every[i] for i in self.list_ids if i in every}
        if sum(len(events.queue) + events.current_concurrency for events in lists.values()) < MANY_LISTS:
            self.due_since = 0.0
            return self._take_from(every)
        self.due_since = self.due_since or time.monotonic()
        held = time.monotonic() - self.due_since < LISTS_SECONDS
        others = {i: e for i, e in every.items() if i not in lists and not (held and _follows(e.queue))}
        return self._take_from(lists) or self._take_from(others)

    def _take_from(self, queues: dict[str, EventQueue]) -> tuple[list[Event], bool, str] | None:
        """The next event of some of the queues."""
        every, self.event_queue_per_concurrency_id = self.event_queue_per_concurrency_id, queues
        try:
            found: tuple[list[Event], bool, str] | None = super().get_events()
        finally:
            self.event_queue_per_concurrency_id = every
        return found


def _follows(events: Sequence[Event]) -> bool:
    """Whether the next of waiting events follows from another one."""
    return bool(events) and all(name in FOLLOWING for _, name in events[0].fn.targets)


class Page(gr.Blocks):  # type: ignore[misc]
    """The page. What its methods do not know, Gradio's own do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._variants: OrderedDict[str, Block] = OrderedDict()  # of components, by their properties

    def queue(self, *args: Any, **kwargs: Any) -> Page:
        """Prepares the queue of the events, once all are bound."""
        super().queue(*args, **kwargs)
        self._queue.__class__ = ListsFirst  # Gradio lets no one choose the class
        self._queue.list_ids = {f.concurrency_id for f in self.fns.values() if _is_group(f.fn)}
        return self

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


def _is_group(fn: Any) -> bool:
    """Whether a handler makes the lists of a page."""
    return fn is not None and isinstance(getattr(inspect.unwrap(fn), "__self__", None), EventGroup)


def _has_files(blocks: Sequence[Block]) -> bool:
    """Whether one of the components has a model of its data, as those for files do."""
    return any(getattr(block, "data_model", None) for block in blocks)
