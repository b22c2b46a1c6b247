"""The studio's page: Gradio Blocks over `core.engine`. Knows pages and browsers; knows nothing of tensors.

Imports Gradio once, here, without the part that is for editors: at each import Gradio 6 parses the
source of every component and writes `.pyi` stubs beside it, half of its import time. It leaves out a
component that has no source file, and that is what it is told.
"""

from __future__ import annotations

import inspect
from typing import Any
from unittest import mock

_getfile = inspect.getfile


def _hidden(thing: Any) -> str:
    if isinstance(thing, type) and thing.__module__.startswith("gradio."):
        raise OSError("components are not described while the studio starts")
    return _getfile(thing)


with mock.patch.object(inspect, "getfile", _hidden):
    import gradio as _  # noqa: F401
