"""One row of a generation while it is decoded (`SequenceState`), and what is shown of it (`Column`)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from core.model.detokenizer import Detokenizer, hold_back
from core.spec.gate import GateDecision
from core.spec.mix import Mix, Sampling


@dataclass(frozen=True)
class MixChange:
    """A position in an answer where its mix changed.

    Attributes:
        at: characters before it.
        tokens: tokens before it.
        mix: the name of the new mix.
        stamp: what the model had active from there on, as `Column.stamp`.
    """

    at: int
    tokens: int
    mix: str
    stamp: dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One mix's answer so far, as text.

    While the answer grows, each text is a prefix of the next one.

    Attributes:
        text: the answer, without its thought and without blanks around it.
        tokens: how many tokens were decoded, those of the thought included.
        seconds: from the start of the prefill to the newest token.
        done: whether it has ended.
        reason: why it ended: "end" (an end token), "length", "stop" (a stop string), or "" while it is
            decoded.
        stamp: the mix that was active, read back from the tensors that the layers multiplied by, and the
            sampling.
        mix_changes: the positions where the mix changed during the answer, in order.
        thought: what a reasoning model wrote before its answer.
        thought_tokens: tokens of the thought; all of them where the answer has not begun.
    """

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    done: bool = False
    reason: str = ""
    stamp: dict[str, Any] = field(default_factory=dict)
    mix_changes: tuple[MixChange, ...] = ()
    thought: str = ""
    thought_tokens: int = 0


class SequenceState:
    """One row of a generation: its mix, its sampler and the tokens so far.

    Attributes:
        row: the index of the column, among all columns.
        requested: the mix that was asked for, with its weights on Auto.
        mix: the mix that answers, with a number for every weight.
        gates: adapter id -> what its gate decided last.
        limit: the longest answer, in tokens: that of the sampling, or the room in the context.
        ids: the answer's token ids.
        seconds, reason, stamp: as in `Column`.
        opens_in_thought: whether the prompt ends inside a thought.
        noise: rows with the same key share their random numbers; the seed, where all rows begin together.
        text_before_stop: the answer up to its stop string, once it ended at one.
        mix_changes: (tokens before, name of the new mix, stamp) per change.
        fallback: why the base answers in place of the mix that was asked for, or "".
        processors: transformers' logits processors for this sampling; empty for plain greedy decoding.
    """

    def __init__(
        self,
        row: int,
        mix: Mix,
        sampling: Sampling,
        limit: int | None = None,
        detokenizer: Detokenizer | None = None,
    ) -> None:
        self.row = row
        self.requested = mix
        self.mix = mix.without_auto
        self.gates: dict[str, GateDecision] = {}
        self.sampling = sampling
        self.limit = sampling.max_new_tokens if limit is None else limit
        self.ids: list[int] = []
        self.seconds = 0.0
        self.reason = ""
        self.noise: Hashable = sampling.seed
        self.opens_in_thought = False
        self.text_before_stop: str | None = None
        self.stamp: dict[str, Any] = {}
        self.fallback = ""
        self.mix_changes: list[tuple[int, str, dict[str, Any]]] = []
        self.processors = _make_processors(sampling)
        self._detokenizer = detokenizer
        self._thought_tokens = 0

    def change_mix(self, mix: Mix) -> None:
        """Uses another mix from the next token on; its stamp is recorded after the next forward."""
        self.requested, self.mix, self.gates, self.stamp = mix, mix.without_auto, {}, {}

    def open_gates(self, mix: Mix, decisions: dict[str, GateDecision]) -> None:
        """Uses the mix that the gates chose from the next token on."""
        self.mix, self.gates, self.stamp = mix, decisions, {}

    def record_stamp(self, stamp: dict[str, Any]) -> None:
        """Records what the model had active, once per mix."""
        if not self.stamp:
            gates = {a: decision.to_json() for a, decision in self.gates.items()}
            self.stamp = {**stamp, "auto": gates} if gates else stamp
            if self.ids:
                self.mix_changes.append((len(self.ids), self._name, self.stamp))

    @property
    def _name(self) -> str:
        return self.requested.name or str(self.requested)

    def end_at_stop(self, tokenizer: Any) -> bool:
        """Ends the answer before the first stop string in it, and returns whether there is one.

        A thought is not searched.
        """
        _, answer = self._split(tokenizer, self.ids)
        ends = [answer.index(s) for s in self.sampling.stop if s and s in answer]
        if ends:
            self.text_before_stop, self.reason = answer[: min(ends)], "stop"
        return bool(ends)

    def column(self, tokenizer: Any) -> Column:
        """Decodes the answer so far."""
        thought, answer = self._split(tokenizer, self.ids)
        text = answer if self.text_before_stop is None else self.text_before_stop
        if not self.reason:  # what may become a stop string waits for its end
            text = hold_back(text, self.sampling.stop)
        text = text.strip()
        changes = tuple(
            MixChange(min(len(self._split(tokenizer, self.ids[:n])[1]), len(text)), n, name, stamp)
            for n, name, stamp in self.mix_changes
        )
        stamp = {**self.stamp, "mix": self._name, "sampling": self.sampling.to_json()}
        if self.fallback:
            stamp["fallback"] = self.fallback
        return Column(
            text,
            len(self.ids),
            self.seconds,
            bool(self.reason),
            self.reason,
            stamp,
            changes,
            thought,
            self._count_thought_tokens(tokenizer, bool(answer)) if thought else 0,
        )

    def _split(self, tokenizer: Any, ids: Sequence[int]) -> tuple[str, str]:
        """The thought and the answer that these ids encode."""
        if self._detokenizer is None:
            self._detokenizer = Detokenizer(tokenizer)
        return self._detokenizer.split(ids, self.opens_in_thought, bool(self.reason))

    def _count_thought_tokens(self, tokenizer: Any, has_answer: bool) -> int:
        if not has_answer:
            return len(self.ids)
        if not self._thought_tokens:
            self._thought_tokens = (self._detokenizer or Detokenizer(tokenizer)).count_thought_tokens(
                self.ids
            )
        return self._thought_tokens


def _make_processors(sampling: Sampling) -> LogitsProcessorList:
    processors: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            processors.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList(processors)
