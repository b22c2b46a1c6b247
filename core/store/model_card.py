"""The README.md of an adapter: the model card that the Hub shows."""

from __future__ import annotations

import json
import re
from typing import Any

from core.spec.gate import GateCalibration
from core.store.gate_records import describe_gate

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
TEXT_LIMIT = 200  # characters of a text that a user typed
GATE_LIMIT = 700  # characters of the sentence about the gate, which names datasets


def format_model_card(metadata: dict[str, Any], config: dict[str, Any]) -> str:
    """Formats the model card of an adapter.

    Texts that users typed are JSON strings in the front matter and escaped Markdown below it, so that they
    cannot add fields, links or HTML.

    Args:
        metadata: its EXPERIMENT_METADATA.json.
        config: its adapter_config.json.
    """
    base = metadata.get("base") or {}
    digest = base.get("fingerprint", "")[:16]
    method = "DoRA" if config.get("use_dora") else "LoRA"
    lines = [
        "---",
        f"base_model: {_quote(base.get('name', ''))}",
        "library_name: peft",
        "tags: [lora, adapter-studio]",
        "---",
        "",
        f"# {escape_markdown(metadata['name'])}",
        "",
        f"A {metadata.get('kind')} adapter ({method}, rank {config['r']}, alpha {config['lora_alpha']:g}), "
        f"{'imported into' if metadata.get('imported') else 'made with'} Adapter Studio.",
        "",
        f"- Base model: {escape_markdown(base.get('name', ''))} (fingerprint `{digest}`)",
        *_sources(metadata),
        *_results(metadata.get("results") or {}),
        *_gate(metadata.get("gate")),
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
            f"- Baked from: {escape_markdown(p['name'])}, weight {p['weight']:g} "
            f"(sha256 `{p['sha256'][:16]}`)"
            for p in metadata["baked_from"]
        ]
    elif origin := metadata.get("imported"):
        source, tool = escape_markdown(origin.get("source", "")), escape_markdown(origin.get("tool", ""))
        lines = [f"- Imported from: {source}, made with {tool}"]
        claimed = str(origin.get("claimed_base", ""))
        if HUB_NAME.fullmatch(claimed):  # a path of the machine where it was trained stays out of the card
            lines.append(f"- It names its base as: {escape_markdown(claimed)}")
        if repairs := origin.get("repairs"):
            lines.append(f"- Changed by the import: {escape_markdown(', '.join(repairs))}")
    else:
        data = metadata.get("dataset") or {}
        digest = str(data.get("sha256", ""))[:16]
        lines = [f"- Dataset: {escape_markdown(data.get('name', ''))} (sha256 `{digest}`)"]
    parent = (metadata.get("stacked_on") or {}).get("name")
    if parent:
        lines.append(
            f"- Trained on top of: {escape_markdown(parent)}, frozen and active. "
            "Load both adapters to use it as it was trained."
        )
    return lines


def _results(results: dict[str, Any]) -> list[str]:
    return [
        f"- {escape_markdown(name.replace('_', ' '))}: {value:.4g}"
        for name, value in sorted(results.items())
        if isinstance(value, (int, float))
    ]


def _gate(gate: Any) -> list[str]:
    """How the gate of its weight on Auto is calibrated."""
    if GateCalibration.from_json(gate) is None:
        return []
    return [f"- Weight on Auto: {escape_markdown(describe_gate(gate), GATE_LIMIT)}"]


def _quote(value: Any) -> str:
    return json.dumps(str(value)[:TEXT_LIMIT], ensure_ascii=True)


def escape_markdown(value: Any, limit: int = TEXT_LIMIT) -> str:
    """A text in one line of Markdown, at most `limit` characters, without a meaning for Markdown or HTML."""
    text = str(value)[:limit].replace("\n", " ")
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&-])", r"\\\1", text)
