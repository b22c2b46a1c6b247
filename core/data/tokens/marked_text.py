"""A text that remembers which of its characters come from a user, and which from a chat template."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class MarkedText:
    """A rendered text.

    Attributes:
        text: the characters.
        user: (start, end) of the parts that come from a user, in ascending order; the rest is the template's.
    """

    text: str = ""
    user: tuple[tuple[int, int], ...] = ()

    @classmethod
    def join(cls, parts: Iterable[tuple[str, bool]]) -> MarkedText:
        """Joins parts, each with whether it comes from a user."""
        texts: list[str] = []
        user: list[tuple[int, int]] = []
        at = 0
        for text, is_user in parts:
            if is_user and text:
                user.append((at, at + len(text)))
            texts.append(text)
            at += len(text)
        return cls("".join(texts), tuple(user))

    def __len__(self) -> int:
        return len(self.text)

    def __add__(self, other: MarkedText) -> MarkedText:
        shift = len(self.text)
        moved = tuple((start + shift, end + shift) for start, end in other.user)
        return MarkedText(self.text + other.text, self.user + moved)

    def cut(self, start: int, end: int | None = None) -> MarkedText:
        """The part from `start` to `end`, counted in characters."""
        stop = len(self.text) if end is None else end
        kept = ((max(a, start) - start, min(b, stop) - start) for a, b in self.user if a < stop and b > start)
        return MarkedText(self.text[start:stop], tuple(kept))

    def overlaps_user(self, start: int, end: int) -> bool:
        """Whether one of the characters from `start` to `end` comes from a user."""
        return any(a < end and b > start for a, b in self.user)
