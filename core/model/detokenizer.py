"""Token ids of an answer to text, without halves of characters, and with its thought apart.

A character may be encoded in several tokens, with byte-level BPE and with sentencepiece's byte fallback.
While its last bytes are missing, `tokenizer.decode` writes U+FFFD in its place. `Detokenizer` leaves such
bytes out: an unfinished character waits for its end while an answer is streamed, and is dropped where the
answer ends before it. A U+FFFD that the model wrote (bytes EF BF BD) stays, and so does one for bytes that
no byte can complete.

So the texts of a growing answer extend one another:

    ids              text
    The              The
    The ␣            The
    The ␣ E2 82      The
    The ␣ E2 82 AC   The €
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import Any

from core.data.tokens.thoughts import MARKERS, split_thoughts

REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # sentencepiece's byte fallback
_OPENINGS = tuple(opening for opening, _ in MARKERS)
_CLOSINGS = tuple(closing for _, closing in MARKERS)
PROMPT_END = 16  # tokens at the end of a prompt in which a thought may be opened


def _byte_characters() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's, Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_characters()
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


class Detokenizer:
    """Decodes answers with one tokenizer.

    Args:
        tokenizer: of the base.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Markers of a thought that decoding would skip, because the tokenizer declares them as special.
        self._markers = {
            i: marker
            for pair in MARKERS
            for marker in pair
            if (i := self._find_token(marker)) is not None and not self._decode_piece([i])
        }
        self._bytes: dict[int, bytes | None] = {}

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids without special tokens and without unfinished characters; markers of thoughts stay."""
        text = self._decode(ids)
        return text if REPLACEMENT not in text else self._decode(self.complete(ids))

    def complete(self, ids: Sequence[int]) -> list[int]:
        """The ids without the bytes of a last, unfinished character.

        A token that holds such bytes behind others is replaced by tokens of the others.
        """
        kept = list(ids)
        begin = len(kept)
        while begin and self._read_bytes(kept[begin - 1]) is not None:
            begin -= 1
        missing = _count_tail_bytes(b"".join(self._read_bytes(i) or b"" for i in kept[begin:]))
        while missing > 0:
            data = self._read_bytes(kept.pop()) or b""
            rest = (self._find_token(CHARACTER_OF[b]) for b in data[: max(len(data) - missing, 0)])
            kept += [i for i in rest if i is not None]
            missing -= len(data)
        return self._repair_byte_tokens(kept)

    def is_in_thought(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends inside a thought, as the templates of some reasoning models do."""
        return self.decode(prompt[-PROMPT_END:]).rstrip().endswith(_OPENINGS)

    def split(self, ids: Sequence[int], is_open: bool, is_done: bool) -> tuple[str, str]:
        """Decodes an answer.

        Args:
            is_open: whether the prompt ends inside a thought.
            is_done: whether the answer has ended. Before, what may be the beginning of a marker is held back.

        Returns:
            (thought, answer); the answer without blanks at its beginning.
        """
        text = self.decode(ids).lstrip()
        if not is_done:
            if text and not is_open and any(o.startswith(text) for o in _OPENINGS):
                return "", ""
            if is_open or text.startswith(_OPENINGS):
                text = hold_back(text, _CLOSINGS)
        thought, answer = split_thoughts(text, is_open)
        return thought, answer.lstrip()

    def count_thought_tokens(self, ids: Sequence[int]) -> int:
        """How many of an answer's tokens belong to its thought, its markers included."""
        low, high = 0, len(ids)
        while low < high:  # the smallest number of tokens that has a closing marker, or all
            middle = (low + high) // 2
            if any(c in self.decode(ids[:middle]) for c in _CLOSINGS):
                high = middle
            else:
                low = middle + 1
        return low

    def _decode(self, ids: Sequence[int]) -> str:
        if not self._markers or self._markers.keys().isdisjoint(ids):
            return self._decode_piece(ids)
        parts: list[str] = []
        piece: list[int] = []
        for i in ids:
            if i in self._markers:
                parts += [self._decode_piece(piece), self._markers[i]]
                piece = []
            else:
                piece.append(i)
        return "".join([*parts, self._decode_piece(piece)])

    def _decode_piece(self, ids: Sequence[int]) -> str:
        # A clean-up of spaces rewrites text that was shown already, and changes what the model wrote.
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _repair_byte_tokens(self, ids: Sequence[int]) -> list[int]:
        """Replaces byte tokens that belong to no character by those of U+FFFD.

        Otherwise a decoder with byte fallback turns all characters of their run into U+FFFD.
        """
        names = [f"<0x{b:02X}>" for b in REPLACEMENT.encode()]
        replacement = [i for name in names if (i := self._find_token(name)) is not None]
        if len(replacement) < len(names):
            return list(ids)
        repaired: list[int] = []
        at = 0
        while at < len(ids):
            data = [self._read_bytes(i) for i in ids[at : at + 4]]
            if data[0] is None or not data[0]:
                size = 1
            else:
                size = next((n for n in range(1, 5) if _is_character(data[:n])), 0)
            repaired += ids[at : at + size] if size else replacement
            at += max(size, 1)
        return repaired

    def _read_bytes(self, token: int) -> bytes | None:
        """The bytes of a token that does not decode to complete characters; None for every other token.

        A token that decodes to nothing (a special one) has no bytes and does not interrupt a character.
        """
        if token not in self._bytes:
            self._bytes[token] = self._compute_bytes(token)
        return self._bytes[token]

    def _compute_bytes(self, token: int) -> bytes | None:
        text = self._decode_piece([token])
        if not text:
            return b""
        if REPLACEMENT not in text:
            return None
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        if match := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(match[1], 16)])
        if all(c in BYTE_OF for c in name):
            return bytes(BYTE_OF[c] for c in name)
        return None

    def _find_token(self, name: str) -> int | None:
        """The id of a token; None where the vocabulary does not have it."""
        found = self._tokenizer.convert_tokens_to_ids(name)
        return found if found is not None and self._tokenizer.convert_ids_to_tokens(found) == name else None


def _count_tail_bytes(data: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that is not complete."""
    for size in range(1, min(3, len(data)) + 1):
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            if not decoder.decode(data[-size:]):
                return size
        except UnicodeDecodeError:
            continue
    return 0


def _is_character(parts: Sequence[bytes | None]) -> bool:
    try:
        return None not in parts and len(b"".join(p or b"" for p in parts).decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False


def hold_back(text: str, ends: Iterable[str]) -> str:
    """The text without an end of it that may become one of `ends` when the text grows."""
    size = max(
        (n for end in ends for n in range(1, min(len(end), len(text) + 1)) if text.endswith(end[:n])),
        default=0,
    )
    return text[: len(text) - size] if size else text
