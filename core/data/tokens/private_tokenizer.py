"""A private copy of a fast tokenizer, in which no text becomes a control token.

Every control token has another name in the copy: a number between characters that Unicode reserves for the
inside of a program. Only the control tokens that a template wrote are renamed in a text. No piece of the
vocabulary and no merge leads to one of them either.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from core.data.tokens.marked_text import MarkedText

_OPEN, _CLOSE = "\ufdd2", "\ufdd3"
_RESERVED = re.compile(f"[{_OPEN}{_CLOSE}]")
_REPLACEMENT = "\ufffd"  # stands for these characters in a user's text
_PLAIN_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@dataclass(frozen=True)
class PrivateTokenizer:
    """A copy of a fast tokenizer in which every control token has another name.

    Attributes:
        backend: of the tokenizers library.
        names: control token to its name in the copy.
    """

    backend: Any
    names: dict[str, str]

    @classmethod
    def build(cls, tokenizer: Any, controls: dict[str, int], prefix: bool) -> PrivateTokenizer | None:
        """Builds the copy; None for a tokenizer of another library.

        Args:
            prefix: whether the copy puts a blank before a text, where the original does.
        """
        original = getattr(tokenizer, "backend_tokenizer", None)
        if original is None:
            return None
        from tokenizers import Tokenizer

        state = json.loads(original.to_str())
        names = {content: f"{_OPEN}{i}{_CLOSE}" for i, content in enumerate(controls)}
        _rename(state, names)
        known = {token["content"] for token in state["added_tokens"]}
        state["added_tokens"] += [
            {"id": controls[content], "content": name, "special": True, **_PLAIN_FLAGS}
            for content, name in names.items()
            if name not in known
        ]
        state["added_tokens"].sort(key=lambda token: token["id"])
        state |= {"truncation": None, "padding": None, "post_processor": None}
        if not prefix:
            for part in ("normalizer", "pre_tokenizer"):
                state[part] = _without_blank(state[part])
        backend = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
        if any(backend.token_to_id(names[content]) != i for content, i in controls.items()):
            return None
        return cls(backend, names)

    def encode(self, text: MarkedText, pattern: re.Pattern[str]) -> list[int]:
        """Encodes a text; only the control tokens that the template wrote are tokens."""
        parts: list[str] = []
        at = 0
        for start, end in [*text.user, (len(text), len(text))]:
            written = text.text[at:start]
            parts.append(pattern.sub(lambda m: self.names[m.group()], written))
            parts.append(_RESERVED.sub(_REPLACEMENT, text.text[start:end]))
            at = end
        return list(self.backend.encode("".join(parts), add_special_tokens=False).ids)


def _rename(state: dict[str, Any], names: dict[str, str]) -> None:
    """Renames tokens in the state of a tokenizer, so that no text is merged into one of them."""
    for token in state["added_tokens"]:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "normalized": False, "single_word": False}
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [
            m
            for m, (left, right) in zip(model["merges"], pairs, strict=True)
            if left not in names and right not in names and left + right not in names
        ]


def _without_blank(part: Any) -> Any:
    """A normalizer or pre-tokenizer that does not put a blank before a text."""
    if not part:
        return part
    if part["type"] == "Sequence":
        key = "normalizers" if "normalizers" in part else "pretokenizers"
        inner = [_without_blank(p) for p in part[key]]
        return {**part, key: [p for p in inner if p]}
    if part["type"] == "Prepend":
        return None
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    return {**part, "add_prefix_space": False} if part.get("add_prefix_space") else part


@lru_cache(maxsize=4)
def puts_blank_first(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a blank before a text, as sentencepiece does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return True  # not known, and the way around it gives the same ids
    parts = (p for p in (backend.normalizer, backend.pre_tokenizer) if p is not None)
    states = [json.loads(p.__getstate__()) for p in parts]
    return any(_without_blank(state) != state for state in states)
