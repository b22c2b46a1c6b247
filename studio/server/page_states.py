"""What Gradio's server (6.31) keeps of each open page, without what the studio does not use.

Gradio computes the configuration of every component for every page that opens, and again for every component
that an event updates, so that a link could restore the page ("deep links"). On this page that takes 36 ms and
0.7 MB for each visitor. It also summarises the last 10,000 events after every event, for a monitoring page
that is switched off, which takes 20 ms; and it looks for matplotlib twice for every event, in all folders of
packages where it is not installed. The studio draws nothing with matplotlib.
"""

from __future__ import annotations

import contextlib
import sys
from copy import copy
from typing import Any

import gradio as gr
from gradio import utils
from gradio.state_holder import SessionState, StateHolder

STATE_LIMIT = 1000  # pages whose state stays in memory; the one that was used longest ago is forgotten first


class PageState(SessionState):  # type: ignore[misc]
    """The state of one page: the updated components and the values of `gr.State`, without configurations."""

    def __init__(self, blocks: gr.Blocks) -> None:
        self.blocks_config = copy(blocks.default_config)
        self.config_values: dict[int, dict[str, Any]] = {}
        self.state_data: dict[int, Any] = {}
        self._state_ttl: dict[int, Any] = {}
        self.is_closed = False
        self.STATE_TTL_WHEN_CLOSED = 3600

    def __setitem__(self, key: int, value: Any) -> None:
        if isinstance(self.blocks_config.blocks.get(key), gr.State):
            super().__setitem__(key, value)
            self.config_values.pop(key, None)
        else:
            self.blocks_config.blocks[key] = value

    def _update_config(self, key: int) -> None:
        """Gradio would compute the configuration of the component."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """Gradio would keep the value of the component for deep links."""


class PageStates(StateHolder):  # type: ignore[misc]
    """The states of all open pages."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = PageState(self.blocks)
        return super().__getitem__(session_id)


def install(app: Any) -> None:
    """Replaces the states of Gradio's application, before its first request, and stops its other work."""
    blocks = app.get_blocks()
    app.state_holder = PageStates()
    app.state_holder.set_blocks(blocks)
    app.state_holder.capacity = STATE_LIMIT
    queue = blocks._queue
    queue.ANALYTICS_MAX_EVENTS = 1
    queue.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize  # sic
    utils.MatplotlibBackendMananger = contextlib.nullcontext  # sic
