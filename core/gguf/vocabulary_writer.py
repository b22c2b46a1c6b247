"""The vocabulary of a tokenizer of the library tokenizers, as llama.cpp has it.

    BPE over bytes        tokens, merges, and the name of the way in which a text is split first
    BPE over characters   tokens and scores: a merge that comes earlier gives its token a better score

Both are BPE models; other ones (unigrams, word pieces) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from core.errors import BaseModelError
from core.gguf.tokenizer import (
    BLANK,
    BYTE,
    CONTROL,
    NORMAL,
    SPLITS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WORDS,
)

OTHER_TOKENIZER = "Export a merged folder of transformers instead."
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# Spellings of one pattern: what is written -> what the table has.
_SPELLINGS = {
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"'(?i:[sdmt]|ll|ve|re)": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "++": "+",
    "?+": "?",
    r"[^\r\n\p{N}\p{L}]": r"[^\r\n\p{L}\p{N}]",
    r"[^\s\p{N}\p{L}]": r"[^\s\p{L}\p{N}]",
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file.

    Attributes:
        model: "gpt2" for BPE over bytes, "llama" for BPE over characters.
        split: `tokenizer.ggml.pre`.
        tokens, kinds: of each row of the embedding.
        scores: of each row; empty for BPE over bytes. merges: in their order; empty for BPE over characters.
        has_prefix: whether llama.cpp puts a blank before a text.
        scheme: before which parts of a text the tokenizer puts one: "always" (between control tokens too),
            "blankless" (always, but not before another blank), "first" (before a whole text only, and not
            before another blank), or "never". llama.cpp knows "always" and "never".
        normalizes: whether accents are composed first, which llama.cpp does not do.
        notes: a sentence each.
    """

    model: str
    split: str
    tokens: list[str] = field(repr=False)
    kinds: list[int] = field(repr=False)
    scores: list[float] = field(default_factory=list, repr=False)
    merges: list[str] = field(default_factory=list, repr=False)
    has_prefix: bool = False
    scheme: str = "never"
    normalizes: bool = False
    notes: list[str] = field(default_factory=list)

    def list_normal_ids(self) -> list[int]:
        """The tokens that texts consist of."""
        return [i for i, kind in enumerate(self.kinds) if kind == NORMAL]


def build_vocabulary(state: dict[str, Any], rows: int, starts_with_control: bool) -> Vocabulary:
    """Builds the vocabulary.

    Args:
        state: the tokenizer as the library tokenizers saves it.
        rows: of the embedding.
        starts_with_control: whether the prompt of a conversation begins with a control token.

    Raises:
        BaseModelError: llama.cpp has no such tokenizer.
    """
    model = state["model"]
    if (
        model.get("type") != "BPE"
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        raise BaseModelError(
            f"The tokenizer is of the kind {model.get('type')!r}; BPE over bytes or over characters can be "
            "written.",
            OTHER_TOKENIZER,
        )
    notes: list[str] = []
    tokens, kinds = _list_tokens(state, rows, notes)
    if any(step["type"] == "ByteLevel" for step in _list_steps(state["pre_tokenizer"], "pretokenizers")):
        return _build_byte_level(state, tokens, kinds, notes)
    return _build_sentencepiece(state, tokens, kinds, notes, starts_with_control)


def _list_tokens(state: dict[str, Any], rows: int, notes: list[str]) -> tuple[list[str], list[int]]:
    """(text, kind) of each row of the embedding."""
    model = state["model"]
    texts: dict[int, str] = {i: text for text, i in model["vocab"].items()}
    kinds: dict[int, int] = {}
    if model.get("byte_fallback"):
        kinds = {i: BYTE for i, text in texts.items() if _BYTE_TOKEN.fullmatch(text)}
    for token in state["added_tokens"]:
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if (unknown := model.get("unk_token")) is not None and unknown in model["vocab"]:
        kinds[model["vocab"][unknown]] = UNKNOWN
    beyond = sorted(texts[i] for i in texts if i >= rows)
    if beyond:
        more = f" and {len(beyond) - 3:,} more" if len(beyond) > 3 else ""
        notes.append(
            f"{', '.join(map(repr, beyond[:3]))}{more} are left out: the embedding has {rows:,} rows."
        )
    known = set(texts.values())
    tokens = []
    for i in range(rows):
        text = texts.get(i)
        if text is None:
            text = f"[PAD{i}]"
            while text in known:
                text += "_"
        tokens.append(text)
    if len(set(tokens)) != len(tokens):
        raise BaseModelError("Two ids of the tokenizer have the same text.", OTHER_TOKENIZER)
    return tokens, [kinds.get(i, NORMAL) if i in texts else UNUSED for i in range(rows)]


def _list_steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences within sequences unfolded."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[name] for step in _list_steps(inner, name)]
    return [part]


# ---------------------------------------------------------------- BPE over bytes


def _build_byte_level(
    state: dict[str, Any], tokens: list[str], kinds: list[int], notes: list[str]
) -> Vocabulary:
    normalizers = _list_steps(state["normalizer"], "normalizers")
    if any(step["type"] != "NFC" for step in normalizers):
        names = ", ".join(step["type"] for step in normalizers)
        raise BaseModelError(
            f"The tokenizer changes texts ({names}), which llama.cpp does not.", OTHER_TOKENIZER
        )
    if normalizers:
        notes.append("The tokenizer composes accents, which llama.cpp does not: decomposed ones differ.")
    merges = [" ".join(m) if isinstance(m, (list, tuple)) else m for m in state["model"]["merges"]]
    return Vocabulary(
        "gpt2", _find_split(state), tokens, kinds, merges=merges, normalizes=bool(normalizers), notes=notes
    )


def _find_split(state: dict[str, Any]) -> str:
    """The name in the table whose patterns are those of the tokenizer.

    Raises:
        BaseModelError: the table has no such way of splitting.
    """
    patterns: list[str] = []
    for step in _list_steps(state["pre_tokenizer"], "pretokenizers"):
        found = _list_patterns(step)
        if found is None:
            raise _refuse_split(step["type"])
        patterns += found
    ignores_merges = bool(state["model"].get("ignore_merges"))
    names = [name for name, split in SPLITS.items() if list(split.patterns) == patterns]
    for name in names:
        if SPLITS[name].whole_words == ignores_merges:
            return name
    if not names:
        raise _refuse_split(" then ".join(patterns) or "no pattern")
    if not _reach_all_tokens(state):
        raise BaseModelError(
            "The tokenizer takes a word that is a token as a whole, which llama.cpp does not for its way of "
            "splitting texts, or the other way round.",
            OTHER_TOKENIZER,
        )
    return names[0]


def _list_patterns(step: dict[str, Any]) -> list[str] | None:
    """The patterns of one step; None where llama.cpp has no such step."""
    if step["type"] == "ByteLevel":
        if step.get("add_prefix_space"):
            return None
        return [WORDS] if step.get("use_regex", True) else []
    if step["type"] == "Digits":
        return [r"\p{N}" if step.get("individual_digits") else r"\p{N}+"]
    if step["type"] != "Split" or "Regex" not in step["pattern"]:
        return None
    way = (step["behavior"], bool(step.get("invert")))
    if way not in (("Isolated", False), ("Removed", True)):
        return None
    pattern: str = step["pattern"]["Regex"]
    for written, usual in _SPELLINGS.items():
        pattern = pattern.replace(written, usual)
    return [pattern]


def _reach_all_tokens(state: dict[str, Any]) -> bool:
    """Whether merges lead to every token from its bytes: whole words and merges then give the same ids."""
    from tokenizers import models

    model = state["model"]
    bpe = models.BPE(vocab=model["vocab"], merges=[_divide_merge(m) for m in model["merges"]])
    added = {token["content"] for token in state["added_tokens"]}
    return all(
        [token.id for token in bpe.tokenize(text)] == [i]
        for text, i in model["vocab"].items()
        if text not in added
    )


def _divide_merge(merge: Any) -> tuple[str, str]:
    if isinstance(merge, str):
        cut = merge.find(" ", 1)
        return merge[:cut], merge[cut + 1 :]
    left, right = merge
    return left, right


def _refuse_split(what: str) -> BaseModelError:
    return BaseModelError(
        f"The tokenizer splits texts in a way that llama.cpp has no name for: {what[:200]}.",
        f"{OTHER_TOKENIZER} These ways have a name: {', '.join(SPLITS)}.",
    )


# ---------------------------------------------------------------- BPE over characters


def _build_sentencepiece(
    state: dict[str, Any], tokens: list[str], kinds: list[int], notes: list[str], starts_with_control: bool
) -> Vocabulary:
    scheme = _find_prefix_scheme(state)
    if scheme is None:
        parts = [state["normalizer"] or {}, state["pre_tokenizer"] or {}]
        names = ", ".join(str(part.get("type", "none")) for part in parts)
        raise BaseModelError(
            f"The tokenizer prepares texts in a way that llama.cpp does not know ({names}).", OTHER_TOKENIZER
        )
    # llama.cpp writes whole tokens as they are, and these stand for blanks: merges lead to them, too.
    kinds = [
        NORMAL if kind == USER_DEFINED and BLANK in text else kind
        for text, kind in zip(tokens, kinds, strict=True)
    ]
    has_prefix = scheme in ("always", "blankless") or (scheme == "first" and not starts_with_control)
    return Vocabulary(
        "llama",
        "default",
        tokens,
        kinds,
        scores=list(_score(state, tokens, kinds)),
        has_prefix=has_prefix,
        scheme=scheme,
        notes=notes,
    )


def _find_prefix_scheme(state: dict[str, Any]) -> str | None:
    """`Vocabulary.scheme`; None for another tokenizer."""
    steps = _list_steps(state["normalizer"], "normalizers")
    before = _list_steps(state["pre_tokenizer"], "pretokenizers")
    if len(before) == 1 and before[0]["type"] == "Metaspace" and not steps:
        schemes = {"always": "blankless", "first": "first", "never": "never"}
        is_blank = before[0].get("replacement") == BLANK
        return schemes.get(before[0].get("prepend_scheme", "always")) if is_blank else None
    scheme = "never"
    if steps and steps[0] == {"type": "Prepend", "prepend": BLANK}:
        scheme, steps = "always", steps[1:]
    replaces = [{"type": "Replace", "pattern": {"String": " "}, "content": BLANK}]
    splits = [s for s in before if s["type"] != "Split" or s["pattern"] != {"String": " "}]
    return scheme if steps == replaces and not splits else None


def _score(state: dict[str, Any], tokens: list[str], kinds: list[int]) -> Iterator[float]:
    """The score of each token: the better, the earlier a merge leads to it.

    Tokens without a merge are single characters, whose scores llama.cpp does not compare.
    """
    ranks: dict[str, int] = {}
    merges = state["model"]["merges"]
    for rank, merge in enumerate(merges):
        left, right = _divide_merge(merge)
        ranks.setdefault(left + right, rank)
    for text, kind in zip(tokens, kinds, strict=True):
        if kind in (NORMAL, USER_DEFINED):
            yield -float(ranks.get(text, len(merges)))
        else:
            yield 0.0
