"""The tokenizer of a folder as keys of a GGUF file, and the check that a reader gives a text the same ids.

    folder ─ transformers ─> tokenizer ─> tokenizer.ggml.*, template ─ tokenizer.py ─> ids
                                    └─────────────────── probes ───────────────────> ids     must be equal

`tokenizer.ggml.pre` is found in the table of `tokenizer.py`; a way of splitting that is not in it is refused.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import BaseModelError
from core.gguf import vocabulary_writer
from core.gguf.header import GgufHeader
from core.gguf.tokenizer import END_TOKENS, KEEPS_BLANKS, PHI3, PROBES, build_tokenizer
from core.gguf.vocabulary_writer import OTHER_TOKENIZER, Vocabulary

PROBE_SEED = 0
PROBE_TOKENS = 3000  # of the vocabulary, joined to texts
TOKENS_OF_PROBE = 6
_TEXTS = (
    *PROBES,
    "In 2024 there were 1,234,567.89 of them; 007 and 3.14159.",
    "three line ends\n\n\nand   blanks,\ta tab,\r\nand blanks at the end   ",
    "def add(a, b):\n    return a + b  # sum\n\n\nclass A:\n\tpass",
    "Grüße aus Köln! Été à la plage. Żółw. Ελληνικά. Русский текст. हिन्दी",
    "中文没有空格。日本語のテキスト、한국어 문장.",
    "don't DON'T we'll I'M it's 'quoted' '' camelCaseWords SHOUTING",
    "½ ² Ⅷ ① % € … — «» 🙃👨‍👩‍👧",
    "a",
)


@dataclass(frozen=True)
class TokenizerKeys:
    """What a file states about the tokenizer.

    Attributes:
        name: of the model; llama.cpp removes blanks behind the control tokens of models called Phi-3.
        notes: what is different in llama.cpp, a sentence each.
    """

    keys: dict[str, Any]
    name: str
    notes: list[str] = field(default_factory=list)


def build_keys(folder: Path, rows: int, architecture: str, name: str) -> TokenizerKeys:
    """Builds the keys of a tokenizer.

    Args:
        folder: that transformers can load a tokenizer from.
        rows: of the embedding; the list of tokens becomes as long.
        architecture: of llama.cpp. name: of the model.

    Raises:
        BaseModelError: the tokenizer cannot be loaded, or llama.cpp would give some text other ids.
    """
    tokenizer = _load(folder)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = vocabulary_writer.build_vocabulary(state, rows, _starts_with_control(tokenizer))
    notes = list(vocabulary.notes)
    before, after = _find_additions(tokenizer)
    name = _fit_name(name, state["added_tokens"], notes)
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.split,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.kinds,
    }
    if vocabulary.model == "llama":
        keys["tokenizer.ggml.scores"] = vocabulary.scores
        keys["tokenizer.ggml.add_space_prefix"] = vocabulary.has_prefix
    else:
        keys["tokenizer.ggml.merges"] = vocabulary.merges
    keys |= _list_special_ids(tokenizer, folder, rows, vocabulary)
    keys |= {"tokenizer.ggml.add_bos_token": before, "tokenizer.ggml.add_eos_token": after}
    if template := _read_template(tokenizer):
        keys["tokenizer.chat_template"] = template
    described = {**keys, "general.architecture": architecture, "general.name": name}
    _check_ids(tokenizer, described, vocabulary, notes)
    return TokenizerKeys(keys, name, notes)


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as e:  # transformers raises errors of many kinds
        raise BaseModelError(
            f"The tokenizer of {folder.name!r} cannot be loaded: {e}.",
            "The folder needs tokenizer.json and tokenizer_config.json.",
        ) from e
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise BaseModelError(f"The tokenizer of {folder.name!r} has no tokenizer.json.", OTHER_TOKENIZER)
    return tokenizer


def _find_additions(tokenizer: Any) -> tuple[bool, bool]:
    """Whether bos is put before a text, and eos behind it.

    Raises:
        BaseModelError: something else is added, which llama.cpp cannot do.
    """
    text = "a"
    plain = list(tokenizer(text, add_special_tokens=False).input_ids)
    whole = list(tokenizer(text).input_ids)
    for before in ([], [tokenizer.bos_token_id]):
        for after in ([], [tokenizer.eos_token_id]):
            if whole == [*before, *plain, *after]:
                return bool(before), bool(after)
    raise BaseModelError(
        f"The tokenizer puts other tokens around a text than its begin and its end: {whole}.", OTHER_TOKENIZER
    )


def _list_special_ids(tokenizer: Any, folder: Path, rows: int, vocabulary: Vocabulary) -> dict[str, int]:
    ends = _read_end_ids(folder)
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else next(iter(ends), None)
    if eos is None:
        raise BaseModelError(
            "The tokenizer names no token that ends an answer, and llama.cpp would take another one.",
            "Set eos_token in tokenizer_config.json.",
        )
    found = {
        "bos": tokenizer.bos_token_id,
        "eos": eos,
        "padding": tokenizer.pad_token_id,
        "unknown": tokenizer.unk_token_id if vocabulary.model == "llama" else None,
    }
    others = [i for i in ends if i != eos and i < rows and vocabulary.tokens[i] not in END_TOKENS]
    found |= dict(zip(("eot", "eom"), others, strict=False))
    return {
        f"tokenizer.ggml.{key}_token_id": int(i)
        for key, i in found.items()
        if i is not None and 0 <= i < rows
    }


def _read_end_ids(folder: Path) -> list[int]:
    """The tokens that end an answer by generation_config.json."""
    try:
        found = json.loads((folder / "generation_config.json").read_text(encoding="utf-8")).get(
            "eos_token_id"
        )
    except (OSError, ValueError, AttributeError, RecursionError):
        return []
    ids = found if isinstance(found, list) else [found]
    return [i for i in ids if isinstance(i, int) and not isinstance(i, bool) and i >= 0]


def _read_template(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else ""


def _starts_with_control(tokenizer: Any) -> bool:
    """Whether the prompt of a conversation begins with a control token."""
    if not _read_template(tokenizer):
        return False
    try:
        chat = [{"role": "user", "content": "a"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except Exception:  # noqa: BLE001 (templates are programs of others)
        return False
    return any(text.startswith(token) for token in tokenizer.all_special_tokens)


def _fit_name(name: str, added: list[dict[str, Any]], notes: list[str]) -> str:
    """A name with which llama.cpp removes blanks behind control tokens where this tokenizer does.

    llama.cpp does so for models whose name has "Phi-3" in it, and for no others.
    """
    strips = {t["content"] for t in added if t.get("rstrip")}
    rule = {t["content"] for t in added} - set(KEEPS_BLANKS)
    is_phi3 = PHI3.search(name) is not None
    if strips and strips == rule:
        return name if is_phi3 else f"Phi-3 {name}"
    others = sorted(strips | {t["content"] for t in added if t.get("lstrip")})
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        notes.append(f"llama.cpp keeps the blanks beside {', '.join(others[:3])}{more}.")
    return PHI3.sub("Phi 3", name)


# ---------------------------------------------------------------- the check


def _check_ids(tokenizer: Any, metadata: dict[str, Any], vocabulary: Vocabulary, notes: list[str]) -> None:
    """Compares the ids of texts with those of the tokenizer that a reader builds from the keys."""
    backend = build_tokenizer(GgufHeader("the file", metadata, {}, 0), 1).backend
    special = [t for t in tokenizer.all_special_tokens if t in vocabulary.tokens][:8]
    plain = [*_TEXTS, *_join_tokens(tokenizer, vocabulary)]
    if vocabulary.normalizes:
        plain = [unicodedata.normalize("NFC", text) for text in plain]
    within = [f"one{token}two" for token in special] + [f"{token}{_TEXTS[0]}" for token in special]
    if vocabulary.scheme in ("always", "never"):
        _compare(tokenizer, backend, [*plain, *within])
        return
    starts = [text.lstrip() for text in plain]
    if vocabulary.scheme == "blankless":
        _compare(tokenizer, backend, [*starts, *within])
        notes.append("llama.cpp puts a blank before a text that begins with a blank, too.")
    elif vocabulary.has_prefix:
        _compare(tokenizer, backend, starts)
        notes.append("llama.cpp puts a blank behind control tokens, which the tokenizer does not.")
    else:
        _compare(tokenizer, backend, [special[0] + text for text in starts] if special else [])
        notes.append("llama.cpp puts no blank before a text that does not begin with a control token.")


def _join_tokens(tokenizer: Any, vocabulary: Vocabulary) -> list[str]:
    """Texts of tokens of the vocabulary in random order, so that each merge has its turn."""
    ids = vocabulary.list_normal_ids()
    generator = random.Random(PROBE_SEED)
    chosen = generator.sample(ids, min(PROBE_TOKENS, len(ids)))
    texts = [
        tokenizer.decode(chosen[i : i + TOKENS_OF_PROBE]) for i in range(0, len(chosen), TOKENS_OF_PROBE)
    ]
    return [text.replace("\ufffd", "").strip() for text in texts]


def _compare(tokenizer: Any, backend: Any, texts: Sequence[str]) -> None:
    if not texts:
        return
    expected = tokenizer(list(texts)).input_ids
    found = [encoding.ids for encoding in backend.encode_batch(list(texts))]
    for text, ours, theirs in zip(texts, expected, found, strict=True):
        if list(ours) != theirs:
            raise BaseModelError(
                f"llama.cpp would give the text {text[:80]!r} other tokens ({_shorten(theirs)}) than the "
                f"tokenizer of the model ({_shorten(list(ours))}).",
                OTHER_TOKENIZER,
            )


def _shorten(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 12 else f"{ids[:12]}, ..."
