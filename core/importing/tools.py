"""Which tool made an adapter, as far as its files tell."""

from __future__ import annotations

import re

from core.importing.sources import GGUF, AdapterFiles

CARD_LIMIT = 4000  # characters of the front matter and the first lines
# Tags and sentences that tools write into their cards.
CARD_WORDS = {
    "llama-factory": "LLaMA-Factory",
    "unsloth": "Unsloth",
    "axolotl": "axolotl",
    "torchtune": "torchtune",
    "trl": "TRL",
}
# Files that a tool leaves beside its adapters.
FILES = {
    "trainer_log.jsonl": "LLaMA-Factory",
    "llamaboard_config.yaml": "LLaMA-Factory",
    "axolotl_config.yaml": "axolotl",
    "axolotl_config.yml": "axolotl",
}
TORCHTUNE_FIELDS = {"r", "lora_alpha", "target_modules", "peft_type"}  # of torchtune 0.6
MINIMAL = "torchtune or PEFT"


def recognize(files: AdapterFiles) -> str:
    """The name of the tool, with the version of peft where it is stated."""
    config = files.config
    if files.weights.suffix.lower() == GGUF:
        return "llama.cpp"
    if "fine_tune_type" in config:
        return "mlx-lm"
    version = config.get("peft_version")
    stated = f" (peft {version})" if isinstance(version, str) and len(version) <= 40 else ""
    return f"{_recognize_peft(files)}{stated}"


def _recognize_peft(files: AdapterFiles) -> str:
    if files.record:
        return "Adapter Studio"
    if is_unsloth(files):
        return "Unsloth"
    if tool := next((FILES[n] for n in files.passed_over if n in FILES), ""):
        return tool
    card = files.card[:CARD_LIMIT].lower()
    for word, tool in CARD_WORDS.items():
        if re.search(rf"(?<![\w-]){word}(?![\w-])", card):
            return tool
    config = files.config
    if TORCHTUNE_FIELDS <= set(config) <= {*TORCHTUNE_FIELDS, "base_model_name_or_path", "use_dora"}:
        return MINIMAL
    return "PEFT"


def is_unsloth(files: AdapterFiles) -> bool:
    """Whether Unsloth made the adapter: it marks the mapping of classes, or names its copy of the base."""
    mapping = files.config.get("auto_mapping")
    is_marked = isinstance(mapping, dict) and bool(mapping.get("unsloth_fixed"))
    base = str(files.config.get("base_model_name_or_path") or "")
    return is_marked or base.startswith("unsloth/") or "lora_B_layout" in files.config
