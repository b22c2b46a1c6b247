"""The studio's page: Gradio Blocks over `core.engine`.

Gradio is first imported here, without its support for editors: on import, Gradio 6 parses the source of
every component and writes `.pyi` stubs beside it, which takes half of its import time. It skips a component
whose source file cannot be found, so `inspect.getfile` is patched to find none.
"""

from __future__ import annotations

import inspect
from typing import Any
from unittest import mock

_getfile = inspect.getfile


def _hide_components(thing: Any) -> str:
    if isinstance(thing, type) and thing.__module__.startswith("gradio."):
        raise OSError("no stubs for Gradio components")
    return _getfile(thing)


with mock.patch.object(inspect, "getfile", _hide_components):
    import gradio as _  # noqa: F401
