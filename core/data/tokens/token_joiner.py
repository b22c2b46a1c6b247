"""Token ids of a conversation, piece by piece; the ids so far never change.

    pieces   <user>Where?<end><assistant>Assistant:  |   yes<end>  |  <user>And?<end>
    ids      never change when a further piece follows

A piece is encoded together with the text before it, so that blanks and merges come out as in the whole text.
Where a merge would reach back over the border, the piece is encoded on its own. So the ids of a prompt are
the first ids of everything that begins with it.
"""

from __future__ import annotations

from core.data.tokens.marked_text import MarkedText
from core.data.tokens.special_tokens import TextEncoder


class TokenJoiner:
    """Encodes a text that grows by pieces.

    Attributes:
        ids: the token ids so far.
        text: the text so far.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self.ids: list[int] = []
        self.text = MarkedText()
        self._context = MarkedText()  # from the last control token on; what is before it cannot merge
        self._context_size = 0  # tokens

    def extend_to(self, text: MarkedText) -> bool:
        """Adds what a longer text has more, or begins again with a text that begins otherwise.

        Returns:
            Whether it continued.
        """
        continues = text.text.startswith(self.text.text)
        if not continues:
            self.ids, self.text = [], MarkedText()
            self._context, self._context_size = MarkedText(), 0
        self.add(text.cut(len(self.text)))
        return continues

    def add(self, piece: MarkedText) -> None:
        """Encodes one more piece."""
        if not len(piece):
            return
        self._shorten_context()
        size = self._context_size
        ids = self._encoder.encode(self._context + piece)
        if ids[:size] == self.ids[len(self.ids) - size :]:
            ids = ids[size:]
        else:
            ids = self._encoder.encode_continuation(piece)
        self.ids = self.ids + ids
        self.text = self.text + piece
        self._context, self._context_size = self._context + piece, size + len(ids)

    def _shorten_context(self) -> None:
        """Leaves out what stands before the last control token: it cannot merge with what follows."""
        at = self._encoder.find_last_control(self._context)
        if not at:
            return
        context = self._context.cut(at)
        ids = self._encoder.encode(context)
        if ids and ids == self.ids[-len(ids) :]:
            self._context, self._context_size = context, len(ids)
