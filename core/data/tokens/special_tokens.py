"""Control tokens: which tokens of a tokenizer a text may never become, and how text is encoded without them.

A control token is a token that steers the model: special tokens in any declaration, tokens that the chat
template writes, and added tokens that look like markup. What stays an ordinary token: runs of blanks, HTML
tags that the template does not write (Gemma), and added words. Markers that a tokenizer spells out in
ordinary pieces (Llama 2's [INST]) are text like any other.

Where a user wrote out a control token, a private copy of the tokenizer encodes the text. In the copy every
control token has another name, and only those that the template wrote are renamed in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from core.data.tokens.marked_text import MarkedText
from core.data.tokens.private_tokenizer import PrivateTokenizer, puts_blank_first
from core.data.tokens.rendering import TEMPLATE_ERRORS, Turn, fill, render, template_of

_MARKUP = re.compile(r"<.*>|\[.*\]|\{.*\}|\|.*\||.*<\|.*|.*\|>.*", re.DOTALL)
_WRITTEN = re.compile(r"<[^<>\s]{1,60}>|\[[^\[\]\s]{1,60}\]")
_HTML = re.compile(
    r"</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code|p|br|hr|"
    r"div|span|ul|ol|li|a|img|pre)/?>"
)


@lru_cache(maxsize=4)
def _control_tokens(tokenizer: Any, template: str, size: int) -> dict[str, int]:
    added = {str(token.content): (int(i), token) for i, token in tokenizer.added_tokens_decoder.items()}
    special = {t for t in tokenizer.all_special_tokens if t}
    special |= set(getattr(tokenizer, "chat_control_tokens", None) or ())
    written = render_roles(tokenizer)
    found: dict[str, int] = {}
    for content, (number, token) in added.items():
        if not content.strip("\u2581 \t\r\n"):
            continue
        is_written = content in written or (not content.isalnum() and content in template)
        is_markup = _MARKUP.fullmatch(content) is not None and not _HTML.fullmatch(content)
        if token.special or content in special or is_written or is_markup:
            found[content] = number
    for content in special - found.keys():
        number = tokenizer.convert_tokens_to_ids(content)
        if content.strip() and number is not None:
            found[content] = int(number)
    for content in set(_WRITTEN.findall(written)) - added.keys() - found.keys():
        # A token of the vocabulary that was never added, such as a sentencepiece of the kind "control".
        if tokenizer(content, add_special_tokens=False)["input_ids"] == [
            tokenizer.convert_tokens_to_ids(content)
        ]:
            found[content] = int(tokenizer.convert_tokens_to_ids(content))
    return found


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that a text never becomes, and their ids."""
    template = template_of(tokenizer) if tokenizer.chat_template else ""
    return _control_tokens(tokenizer, template, len(tokenizer))


def render_roles(tokenizer: Any) -> str:
    """What the chat template writes around a conversation, or "" without a template."""
    if not tokenizer.chat_template:
        return ""
    turns = [Turn("system", ("x",)), Turn("user", ("x",)), Turn("assistant", ("x",))]
    for part in (turns, turns[1:]):
        try:
            texts = [render(tokenizer, part), render(tokenizer, part[:-1], generation_prompt=True)]
        except TEMPLATE_ERRORS:
            continue
        return "\n".join(fill(text, part).text for text in texts)
    return ""


@lru_cache(maxsize=4)
def _control_pattern(contents: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(_alternate(contents) if contents else "(?!)")


def _alternate(words: Sequence[str]) -> str:
    """A regular expression that matches the longest of several words, by their common prefixes."""
    by_letter: dict[str, list[str]] = {}
    for word in words:
        if word:
            by_letter.setdefault(word[0], []).append(word[1:])
    branches = [re.escape(letter) + _alternate(rest) for letter, rest in by_letter.items() if rest != [""]]
    branches += [re.escape(letter) for letter, rest in by_letter.items() if rest == [""]]
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)})" + ("?" if "" in words else "")


def count_with_special_tokens(tokenizer: Any, texts: Iterable[str]) -> int:
    """Counts the texts in which a control token is written out."""
    return count_with_words(tuple(control_tokens(tokenizer)), texts)


def count_with_words(words: tuple[str, ...], texts: Iterable[str]) -> int:
    """Counts the texts in which one of several words, such as control tokens, occurs."""
    pattern = _control_pattern(words)
    return sum(pattern.search(text) is not None for text in texts)


def boundary_ids(tokenizer: Any) -> list[int]:
    """The tokens that stand before a document: what the tokenizer itself puts there, else eos."""
    return list(text_prefix(tokenizer)) or [int(tokenizer.eos_token_id)]


def text_prefix(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that the tokenizer itself puts before a text, such as BOS; empty where it puts none."""
    return _text_prefix(tokenizer, getattr(tokenizer, "add_bos_token", None))


@lru_cache(maxsize=4)
def _text_prefix(tokenizer: Any, add_bos_token: Any) -> tuple[int, ...]:
    alone = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    at = next((i for i in range(len(whole)) if whole[i : i + len(alone)] == alone), 0)
    return tuple(whole[:at])


def encoder_of(tokenizer: Any) -> TextEncoder:
    """The encoder of a tokenizer; one per tokenizer, template and number of tokens."""
    return _encoder_of(tokenizer, tuple(control_tokens(tokenizer).items()))


@lru_cache(maxsize=4)
def _encoder_of(tokenizer: Any, controls: tuple[tuple[str, int], ...]) -> TextEncoder:
    return TextEncoder(tokenizer, dict(controls))


class TextEncoder:
    """Encodes marked texts: the template's control tokens are tokens, those in a user's text are characters.

    Args:
        controls: the control tokens and their ids.
    """

    def __init__(self, tokenizer: Any, controls: dict[str, int]) -> None:
        self.tokenizer = tokenizer
        self.controls = controls
        self.pattern = _control_pattern(tuple(controls))
        self._private: dict[bool, PrivateTokenizer | None] = {}

    def encode(self, text: MarkedText) -> list[int]:
        """Encodes a text from its beginning.

        A control token that a user wrote does not merge with the text around it, unless the tokenizer puts a
        blank before every text.
        """
        forged = [m.span() for m in self.pattern.finditer(text.text) if text.overlaps_user(*m.span())]
        if not forged:
            return self._encode_original(text.text)
        if puts_blank_first(self.tokenizer):
            return self._encode_privately(text, prefix=True)
        cuts = [0, *(at for span in forged for at in span), len(text)]
        pieces = (text.cut(start, end) for start, end in zip(cuts, cuts[1:], strict=False))
        return [i for piece in pieces if len(piece) for i in self._encode_privately(piece, prefix=True)]

    def encode_user(self, text: str) -> list[int]:
        """Encodes a text that comes from a user as a whole."""
        if not self.pattern.search(text):
            return self._encode_original(text)
        return self._encode_privately(MarkedText.join([(text, True)]), prefix=True)

    def encode_continuation(self, text: MarkedText) -> list[int]:
        """Encodes a text that follows another one: the tokenizer puts no blank before it."""
        if not puts_blank_first(self.tokenizer):
            return self.encode(text)
        first = self.find_control(text)
        at = len(text) if first is None else first[0]
        head = self._encode_privately(text.cut(0, at), prefix=False) if at else []
        return head + (self.encode(text.cut(at)) if at < len(text) else [])

    def find_control(self, text: MarkedText, start: int = 0) -> tuple[int, int] | None:
        """The first control token at or after `start` that the template wrote: its first and last offset."""
        spans = (m.span() for m in self.pattern.finditer(text.text, start))
        return next((span for span in spans if not text.overlaps_user(*span)), None)

    def find_last_control(self, text: MarkedText) -> int | None:
        """The offset of the last control token that the template wrote."""
        spans = [m.span() for m in self.pattern.finditer(text.text)]
        return next((span[0] for span in reversed(spans) if not text.overlaps_user(*span)), None)

    def _encode_original(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])

    def _encode_privately(self, text: MarkedText, prefix: bool) -> list[int]:
        """Encodes a text in which a user wrote out a control token, or without a blank before it."""
        if prefix not in self._private:
            self._private[prefix] = PrivateTokenizer.build(self.tokenizer, self.controls, prefix)
        private = self._private[prefix]
        if private is not None:
            return private.encode(text, self.pattern)
        return self._encode_pieces(text, prefix)

    def _encode_pieces(self, text: MarkedText, prefix: bool) -> list[int]:
        """As `_encode_privately`, for tokenizers that are not built on the tokenizers library."""
        cuts = [0, len(text)]
        for m in self.pattern.finditer(text.text):
            if text.overlaps_user(*m.span()):
                cuts.append(m.start() + 1)  # neither part is a token
        cuts.sort()
        ids: list[int] = []
        for start, end in zip(cuts, cuts[1:], strict=False):
            piece = text.text[start:end]
            ids += self._encode_original(piece) if prefix and not start else self._encode_after_newline(piece)
        return ids

    def _encode_after_newline(self, text: str) -> list[int]:
        newline = self._encode_original("\n")
        ids = self._encode_original("\n" + text)
        return ids[len(newline) :] if ids[: len(newline)] == newline else self._encode_original(text)
