"""The rows that decode a batch of answers: one per answer, or several where a gate may switch.

```
answer 0, fixed mix              row 0
answer 1, gate by the prompt     rows 1 2 at prefill (without, with the adapter) ─> the chosen one
answer 2, gate by the tokens     rows 3 4 until its end: both read the same tokens, one of them answers
```

The keys and values of a row belong to one mix from its first token to its last, so an answer that moves to
another row continues exactly as if all of it had been computed under the other mix. That is why a gate that
follows the tokens costs a row per mix that it may switch to, and nothing is approximate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from core.model.activation import inference_mode_for
from core.model.columns import SequenceState
from core.model.decoding import CausalDecoder, EncoderDecoder, make_decoder, token_log_likelihoods
from core.model.fast_decoding import PackedDecoder
from core.model.gating import (
    EVIDENCE_TOKENS,
    decide_mix,
    evidence_start,
    list_candidates,
    name_likelihoods,
)
from core.model.resident import Resident
from core.spec.gate import TOKEN_WINDOW
from core.spec.mix import Mix


@dataclass(eq=False)
class Row:
    """One row of the decoder.

    Attributes:
        likelihoods: of the newest tokens, in nats, for a gate that follows them.
    """

    state: SequenceState
    mix: Mix
    likelihoods: torch.Tensor | None = None


class AnswerBatch:
    """Decodes answers, each under its mix, and lets gates choose.

    Args:
        prompts: token ids, by `SequenceState.row`.
        limit: the longest answer, in tokens.
        fast: whether packed weights may answer.

    Attributes:
        history: (B, T) tokens that a repetition penalty reads before the first token of the answers.
    """

    def __init__(
        self,
        resident: Resident,
        prompts: Sequence[Sequence[int]],
        states: Sequence[SequenceState],
        limit: int,
        fast: bool,
    ) -> None:
        self._resident, self._limit, self._fast = resident, limit, fast
        self._prompts = {state: prompts[state.row] for state in states}
        self._has_new_prompts = False  # whether the prompts of the decoder hold parts of answers
        self._logits: torch.Tensor | None = None  # (rows, V), of a prefill that has already happened
        self._begin(list(states), [[] for _ in states])
        self.history = self._decoder.history[[self._rows.index(row) for row in self._chosen]]

    @property
    def states(self) -> list[SequenceState]:
        """The answers that are still decoded."""
        return [row.state for row in self._chosen]

    def _begin(self, states: Sequence[SequenceState], answers: Sequence[Sequence[int]]) -> None:
        """Prepares a prefill of prompts and answers so far."""
        self._resident.load_adapters([s.requested for s in states])
        self._candidates = {
            s: list_candidates(self._resident, s.requested) if s.requested.auto else [s.mix] for s in states
        }
        self._rows = [Row(s, mix) for s in states for mix in self._candidates[s]]
        self._chosen = [next(r for r in self._rows if r.state is s) for s in states]
        so_far = dict(zip(states, answers, strict=True))
        self._decoder = self._make_decoder([[*self._prompts[r.state], *so_far[r.state]] for r in self._rows])
        self._must_choose = any(s.requested.auto for s in states)
        self._has_new_prompts = any(answers)

    def _make_decoder(
        self, prompts: Sequence[Sequence[int]]
    ) -> CausalDecoder | EncoderDecoder | PackedDecoder:
        base = self._resident.base
        if self._fast and base.packed is not None:
            return PackedDecoder(base, base.packed, self._resident.mixer, prompts, self._limit)
        return make_decoder(base, prompts, self._limit)

    def restart(self) -> None:
        """Prefills prompts and answers so far again, after a mix was changed.

        Keys and values are valid only under the mix that they were computed under.
        """
        states = self.states
        answers = [s.ids for s in states]
        has_gates = any(s.requested.auto for s in states)
        is_encoder = isinstance(self._decoder, EncoderDecoder)  # its gates choose nothing
        self._logits = None
        if is_encoder or (len(self._rows) == len(states) and not has_gates and not self._has_new_prompts):
            self._resident.load_adapters([s.requested for s in states])
            self._candidates = {s: [s.mix] for s in states}
            self._must_choose = has_gates
            for row in self._rows:
                row.mix = row.state.mix
            self._decoder.reset([s.row for s in states], answers)
        else:
            self._begin(states, answers)

    def step(self) -> torch.Tensor:
        """Runs one forward, and records the stamps of answers whose mix is new.

        Returns:
            (B, V) logits of the next token of every answer.
        """
        resident = self._resident
        # Since the last step, an adapter may have ended its training, or have been unloaded.
        resident.load_adapters([row.mix for row in self._rows])
        if self._must_choose:
            self._choose()
        with inference_mode_for(resident, resident.rows([row.mix for row in self._rows])):
            if self._logits is None:
                self._logits = self._decoder.step()
            for row in self._chosen:
                if not row.state.stamp:
                    row.state.record_stamp(resident.stamp(self._rows.index(row), self._decoder.precision))
        if len(self._chosen) == len(self._rows):
            return self._logits
        return self._logits[[self._rows.index(row) for row in self._chosen]]

    def _choose(self) -> None:
        """Prefills every candidate, and keeps the rows that the gates choose or may switch to."""
        self._must_choose = False
        resident = self._resident
        if isinstance(self._decoder, EncoderDecoder):
            likelihoods = [torch.zeros(0) for _ in self._rows]
        else:
            with inference_mode_for(resident, resident.rows([row.mix for row in self._rows])):
                self._logits, likelihoods = self._decoder.prefill_with_evidence(self._limit_of_evidence())
        for row, values in zip(self._rows, likelihoods, strict=True):
            prompt = self._prompts[row.state]
            read = values[: len(values) - len(row.state.ids)]
            row.likelihoods = read[max(0, len(read) - (len(prompt) - evidence_start(prompt))) :]
        missing = False
        kept: list[Row] = []
        chosen: list[Row] = []
        for state, candidates in self._candidates.items():
            rows = [row for row in self._rows if row.state is state]
            if not state.requested.auto:
                kept, chosen = [*kept, *rows], [*chosen, rows[0]]
                continue
            named = name_likelihoods(state.requested, candidates, [r.likelihoods for r in rows])
            choice = decide_mix(resident, state.requested, named)
            state.open_gates(choice.mix, choice.decisions)
            answering = next((r for r in rows if _is_same_mix(r.mix, choice.mix)), None)
            if answering is None:  # a part of a weight, or adapters of two kinds at once
                missing = True
                answering = Row(state, choice.mix)
                rows = [answering]
            kept += rows if "token" in state.requested.auto.values() and len(rows) > 1 else [answering]
            chosen.append(answering)
        if missing:
            self._rows, self._chosen, self._logits = kept, chosen, None
            self._decoder = self._make_decoder([[*self._prompts[r.state], *r.state.ids] for r in self._rows])
            return
        self._select([self._rows.index(row) for row in kept])
        self._chosen = chosen

    def _limit_of_evidence(self) -> int:
        return EVIDENCE_TOKENS + max(len(row.state.ids) for row in self._rows)

    def _select(self, indices: list[int]) -> None:
        if indices == list(range(len(self._rows))):
            return
        rows = torch.tensor(indices, device=self._resident.base.device)
        with torch.inference_mode():
            self._decoder.select_rows(rows)
            if self._logits is not None:
                self._logits = self._logits[rows]
        self._rows = [self._rows[i] for i in indices]

    def append(self, tokens: torch.Tensor) -> None:
        """Appends a token to every answer, keeps those that have not ended, and lets gates follow the tokens.

        Args:
            tokens: (B,) ids.
        """
        of_state = {row.state: b for b, row in enumerate(self._chosen)}
        by_row = (
            tokens if len(self._rows) == len(of_state) else tokens[[of_state[r.state] for r in self._rows]]
        )
        logits, self._logits = self._logits, None
        assert logits is not None
        with torch.inference_mode():
            self._decoder.append(by_row)
            for b, row in enumerate(self._rows):
                if "token" in row.state.requested.auto.values() and row.likelihoods is not None:
                    new = token_log_likelihoods(logits[b : b + 1], by_row[b : b + 1])
                    row.likelihoods = torch.cat([row.likelihoods, new])[-TOKEN_WINDOW:]
        self.keep_active()
        for b, row in enumerate(self._chosen):
            self._chosen[b] = self._follow_tokens(row)

    def keep_active(self) -> None:
        """Drops the rows of answers that have ended."""
        alive = [i for i, row in enumerate(self._rows) if not row.state.reason]
        self._chosen = [row for row in self._chosen if not row.state.reason]
        if len(alive) < len(self._rows) and alive:
            self._select(alive)

    def join(self, other: AnswerBatch) -> bool:
        """Takes over the answers of another batch; both have taken a step and appended its tokens.

        Returns:
            False where their decoders cannot become one; then nothing has changed.
        """
        if not self._chosen or not other._chosen or self._logits is not None or other._logits is not None:
            return False
        with torch.inference_mode():
            if not self._decoder.join(other._decoder):
                return False
        self._rows += other._rows
        self._chosen += other._chosen
        alive = self.states
        self._prompts = {s: p for s, p in {**self._prompts, **other._prompts}.items() if s in alive}
        self._candidates = {s: c for s, c in {**self._candidates, **other._candidates}.items() if s in alive}
        self._limit = max(self._limit, other._limit)
        return True

    def _follow_tokens(self, row: Row) -> Row:
        """The row that continues an answer: another one where its gate has switched."""
        state = row.state
        rows = [r for r in self._rows if r.state is state]
        if len(rows) < 2:
            return row
        named = name_likelihoods(state.requested, [r.mix for r in rows], [r.likelihoods for r in rows])
        choice = decide_mix(self._resident, state.requested, named, state.gates)
        other = next((r for r in rows if _is_same_mix(r.mix, choice.mix)), row)
        if other is not row:
            state.open_gates(other.mix, choice.decisions)
        return other


def _is_same_mix(one: Mix, other: Mix) -> bool:
    return one is other or replace(one, name="") == replace(other, name="")
