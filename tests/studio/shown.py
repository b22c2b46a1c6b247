"""What a view shows, and the events of its buttons."""

from __future__ import annotations

from typing import Any

import gradio as gr


def pressed(**action: Any) -> gr.EventData:
    return gr.EventData(None, action)


def texts(node: Any) -> str:
    return node if isinstance(node, str) else " ".join(texts(k) for k in (node or {}).get("kids", []))


def actions(node: Any) -> list[dict[str, Any]]:
    if not isinstance(node, dict):
        return []
    inner = [a for kid in node.get("kids", []) for a in actions(kid)]
    return [node["act"], *inner] if "act" in node else inner
