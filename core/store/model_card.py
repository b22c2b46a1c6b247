"""The README.md of an adapter: the model card that the Hub shows."""

from __future__ import annotations

import json
import re
from typing import Any

TEXT_LIMIT = 200  # characters of a text that a user typed


def format_model_card(metadata: dict[str, Any], config: dict[str, Any]) -> str:
    """Formats the model card of an adapter.

    Texts that users typed are JSON strings in the front matter and escaped Markdown below it, so that they
    cannot add fields, links or HTML.

    Args:
        metadata: its EXPERIMENT_METADATA.json.
        config: its adapter_config.json.
    """
    base = metadata.get("base") or {}
    method = "DoRA, which cannot be mixed live" if config.get("use_dora") else "LoRA"
    lines = [
        "---",
        f"base_model: {_quote(base.get('name', ''))}",
        "library_name: peft",
        "tags: [lora, adapter-studio]",
        "---",
        "",
        f"# {_escape(metadata['name'])}",
        "",
        f"A {metadata.get('kind')} adapter ({method}, rank {config['r']}, alpha {config['lora_alpha']:g}), "
        "made with Adapter Studio.",
        "",
        f"- Base model: {_escape(base.get('name', ''))} (fingerprint `{base.get('fingerprint', '')[:16]}`)",
        *_sources(metadata),
        *_results(metadata.get("results") or {}),
        "",
        "Load it with `peft.PeftModel.from_pretrained(base, folder)`. "
        "Its provenance is in EXPERIMENT_METADATA.json.",
        "",
    ]
    return "\n".join(lines)


def _sources(metadata: dict[str, Any]) -> list[str]:
    """The dataset or the adapters that it was made of, and its parent adapter."""
    if metadata.get("baked_from"):
        lines = [
            f"- Baked from: {_escape(p['name'])}, weight {p['weight']:g} (sha256 `{p['sha256'][:16]}`)"
            for p in metadata["baked_from"]
        ]
    else:
        data = metadata.get("dataset") or {}
        lines = [f"- Dataset: {_escape(data.get('name', ''))} (sha256 `{str(data.get('sha256', ''))[:16]}`)"]
    parent = (metadata.get("stacked_on") or {}).get("name")
    if parent:
        lines.append(
            f"- Trained on top of: {_escape(parent)}, frozen and active. "
            "Load both adapters to use it as it was trained."
        )
    return lines


def _results(results: dict[str, Any]) -> list[str]:
    return [
        f"- {_escape(name.replace('_', ' '))}: {value:.4g}"
        for name, value in sorted(results.items())
        if isinstance(value, (int, float))
    ]


def _quote(value: Any) -> str:
    return json.dumps(str(value)[:TEXT_LIMIT], ensure_ascii=True)


def _escape(value: Any) -> str:
    text = str(value)[:TEXT_LIMIT].replace("\n", " ")
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&-])", r"\\\1", text)
