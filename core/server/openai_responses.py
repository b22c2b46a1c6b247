"""Answers in the shapes of OpenAI's API, whole and as chunks of a stream, and the mix that was active.

Texts of a growing answer are prefixes of each other, so a chunk holds what was added since the last one.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.engine.serving import Progress, ScoredToken
from core.retrieve.passages import Passage
from core.retrieve.prompt import find_citations
from core.spec.mix import Mix

if TYPE_CHECKING:
    from core.model.columns import Column

LOWEST_LOG_PROB = -9999.0  # stands for minus infinity, as with OpenAI
REPLACEMENT = "\ufffd"  # in the text of a token that holds a part of a character
Scored = tuple[int, ScoredToken]  # its offset in the text of the answer, in characters


# --- what was active


def read_active(stamp: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer was computed with, read back from the tensors: base, weights, tilts, digests; its seed.

    "fallback" is there where the base answered in place of the mix, and says why.

    Args:
        stamp: of a `Column`.
    """
    keys = (
        "base", "base_fingerprint", "quantization", "answered_in", "weights", "tilt", "adapters", "auto",
        "fallback",
    )  # fmt: skip
    sampling = {"seed": stamp["sampling"]["seed"]} if "sampling" in stamp else {}
    return {"mix": name_active(stamp), **{k: stamp[k] for k in keys if k in stamp}, **sampling}


def name_active(stamp: Mapping[str, Any]) -> str:
    """The active mix as a name of a model: "mix:notes=0.7,answers@-1", or "base"."""
    mix = Mix(weights=dict(stamp.get("weights") or {}), tilt=dict(stamp.get("tilt") or {}))
    return "mix:" + str(mix).replace(" + ", ",") if mix.weights else "base"


def make_fingerprint(stamps: Sequence[Mapping[str, Any]]) -> str:
    """The `system_fingerprint` of answers: equal for equal bases, weights, tilts and adapter files."""
    keys = ("base_fingerprint", "quantization", "answered_in", "weights", "tilt", "adapters")
    texts = {json.dumps({k: stamp.get(k) for k in keys}, sort_keys=True) for stamp in stamps}
    return "fp_" + hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:16]


def name_all_active(progress: Sequence[Progress]) -> str:
    """The active mixes of answers, each once; the value of the header X-Adapter-Studio-Mix."""
    stamps = [column.stamp for p in progress for column in p.columns]
    return "; ".join(dict.fromkeys(name_active(stamp) for stamp in stamps))


# --- tokens


def list_shown_tokens(column: Column, tokens: Sequence[ScoredToken]) -> list[Scored]:
    """The tokens of the text of an answer so far, without those of its thought and of a stop string.

    While the answer grows, each list is the beginning of the next one.
    """
    shown = []
    for at, token in _align(column.text, tokens[column.thought_tokens : column.tokens]):
        if at >= len(column.text) and column.reason in ("", "stop"):
            break
        shown.append((at, token))
    return shown


def _align(text: str, tokens: Sequence[ScoredToken]) -> Iterator[Scored]:
    """The offset of every token in a text, from what each token is when it is decoded alone.

    Decoded alone, a part of a character is a replacement character, a special token has a text, and some
    tokenizers leave out a blank. So a token is searched a few characters further on, too, and one that is not
    there takes no room.
    """
    at, slack, is_begun = 0, 1, False
    for token in tokens:
        piece = token.text if is_begun else token.text.lstrip()  # the text has no blanks at its beginning
        is_part = REPLACEMENT in piece
        found = -1 if is_part else text.find(piece, at, at + slack + len(piece))
        yield max(found, at), token
        if found >= 0 and piece:
            at, slack = found + len(piece), 1
        elif found < 0:
            slack += len(piece)
            if not is_part and piece.startswith(text[at:]):  # the rest of it is not shown yet
                at = len(text)
        is_begun = is_begun or is_part or (found >= 0 and bool(piece))


def describe_chat_tokens(tokens: Sequence[Scored]) -> dict[str, Any]:
    """The `logprobs` of a chat answer."""
    return {
        "content": [
            {**_describe(t.text, t.log_prob), "top_logprobs": [_describe(text, p) for text, p in t.top]}
            for _, t in tokens
        ],
        "refusal": None,
    }


def _describe(text: str, log_prob: float) -> dict[str, Any]:
    data = None if REPLACEMENT in text else list(text.encode())
    return {"token": text, "logprob": max(log_prob, LOWEST_LOG_PROB), "bytes": data}


def describe_text_tokens(tokens: Sequence[Scored]) -> dict[str, Any]:
    """The `logprobs` of a completion. The token itself is among the likeliest, as with OpenAI."""
    tops = []
    for _, token in tokens:
        top: dict[str, float] = {}
        for text, log_prob in (*token.top, (token.text, token.log_prob)):
            top[text] = max(log_prob, top.get(text, LOWEST_LOG_PROB))
        tops.append(top if token.top else None)
    return {
        "tokens": [t.text for _, t in tokens],
        "token_logprobs": [max(t.log_prob, LOWEST_LOG_PROB) for _, t in tokens],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": [at for at, _ in tokens],
    }


# --- documents


def describe_documents(progress: Progress, column: Column) -> dict[str, Any]:
    """The passages of an answer's prompt, and those that did not fit; nothing for one without documents.

    `number` is what the answer cites as [1]; `position` is where the passage lies in its document, in
    characters.
    """
    if progress.prompt is None:
        return {}
    used = progress.prompt.used
    cited = {n for citation in find_citations(column.text, len(used)) for n in citation.numbers}
    return {
        "documents": [
            {"number": number, **_describe_passage(passage), "is_cited": number in cited}
            for number, passage in enumerate(used, 1)
        ],
        "documents_left_out": [_describe_passage(passage) for passage in progress.prompt.left_out],
    }


def _describe_passage(passage: Passage) -> dict[str, Any]:
    return {
        "dataset": passage.dataset,
        "dataset_name": passage.dataset_name,
        "title": passage.title,
        "text": passage.text,
        "position": [passage.start, passage.end],
        "score": passage.score,
    }


# --- answers


def count_usage(progress: Sequence[Progress]) -> dict[str, Any]:
    """The `usage` of answers; a prompt that is answered several times counts once."""
    columns = [column for p in progress for column in p.columns]
    prompt, answers = sum(p.prompt_tokens for p in progress), sum(c.tokens for c in columns)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
        "completion_tokens_details": {"reasoning_tokens": sum(c.thought_tokens for c in columns)},
    }


def name_reason(column: Column) -> str | None:
    """The `finish_reason`; None while the answer is generated."""
    if not column.done:
        return None
    return "length" if column.reason == "length" else "stop"


@dataclass
class Answer:
    """The response to one request.

    Args:
        model: the name in the request.
        is_chat: in the shape of chat completions, otherwise of completions.
        with_tokens: whether log-probabilities are listed.
        choices: of one prompt.
        with_usage: whether a stream ends with its usage.
    """

    model: str
    is_chat: bool
    with_tokens: bool = False
    choices: int = 1
    with_usage: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    _shown: dict[int, _Shown] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = self.id or f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"

    def describe(self, progress: Sequence[Progress]) -> dict[str, Any]:
        """The whole response.

        Args:
            progress: the last one of each prompt.
        """
        kind = "chat.completion" if self.is_chat else "text_completion"
        stamps = [column.stamp for p in progress for column in p.columns]
        choices = [
            self._describe_choice(number * self.choices + i, p, i)
            for number, p in enumerate(progress)
            for i in range(len(p.columns))
        ]
        return {**self._head(kind, stamps), "choices": choices, "usage": count_usage(progress)}

    def list_chunks(self, number: int, progress: Progress) -> Iterator[dict[str, Any]]:
        """The chunks of a stream that a new progress of a prompt adds.

        Args:
            number: of the prompt, from 0.
        """
        for i, column in enumerate(progress.columns):
            index = number * self.choices + i
            shown = self._shown.setdefault(index, _Shown())
            if shown.is_ended:
                continue
            tokens = list_shown_tokens(column, progress.tokens[i]) if self.with_tokens else []
            text, thought = column.text[shown.text :], column.thought[shown.thought :]
            added = tokens[shown.tokens :]
            if self.is_chat and not shown.is_begun:
                yield self._make_chunk(column, index, {"delta": {"role": "assistant", "content": ""}})
            if text or thought or added:
                yield self._make_chunk(column, index, self._describe_delta(text, thought, added))
            if column.done:
                ending: dict[str, Any] = {"delta": {}} if self.is_chat else {"text": ""}
                ending |= {"finish_reason": name_reason(column), "active": read_active(column.stamp)}
                ending |= describe_documents(progress, column)
                yield self._make_chunk(column, index, ending)
            self._shown[index] = _Shown(
                len(column.text), len(column.thought), len(tokens), True, is_ended=column.done
            )

    def make_usage_chunk(self, progress: Sequence[Progress]) -> dict[str, Any]:
        """The last chunk of a stream: usage and no choices."""
        stamps = [column.stamp for p in progress for column in p.columns]
        return {**self._head(self._chunk_kind, stamps), "choices": [], "usage": count_usage(progress)}

    # --- parts

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _head(self, kind: str, stamps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": make_fingerprint(stamps),
        }

    def _describe_choice(self, index: int, progress: Progress, i: int) -> dict[str, Any]:
        column = progress.columns[i]
        if self.is_chat:
            thought = {"reasoning_content": column.thought} if column.thought else {}
            message = {"role": "assistant", "content": column.text, "refusal": None, **thought}
            content: dict[str, Any] = {"message": message}
        else:
            content = {"text": column.text}
        log_probs = None
        if self.with_tokens:
            log_probs = self._describe_tokens(list_shown_tokens(column, progress.tokens[i]))
        return {
            "index": index,
            **content,
            "logprobs": log_probs,
            "finish_reason": name_reason(column),
            "active": read_active(column.stamp),
            **describe_documents(progress, column),
        }

    def _describe_tokens(self, tokens: Sequence[Scored]) -> dict[str, Any]:
        return describe_chat_tokens(tokens) if self.is_chat else describe_text_tokens(tokens)

    def _describe_delta(self, text: str, thought: str, tokens: Sequence[Scored]) -> dict[str, Any]:
        log_probs = self._describe_tokens(tokens) if tokens else None
        if not self.is_chat:
            return {"text": text, "logprobs": log_probs}
        delta = {**({"reasoning_content": thought} if thought else {}), **({"content": text} if text else {})}
        return {"delta": delta, "logprobs": log_probs}

    def _make_chunk(self, column: Column, index: int, choice: Mapping[str, Any]) -> dict[str, Any]:
        filled = {"index": index, "logprobs": None, "finish_reason": None, **choice}
        usage = {"usage": None} if self.with_usage else {}
        return {**self._head(self._chunk_kind, [column.stamp]), "choices": [filled], **usage}


@dataclass(frozen=True)
class _Shown:
    """How much of a choice the stream holds already: characters, tokens, its first and its last chunk."""

    text: int = 0
    thought: int = 0
    tokens: int = 0
    is_begun: bool = False
    is_ended: bool = False
