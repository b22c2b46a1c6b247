"""Continuous batching: answers begin and end at any time, each with its own mix, sampling and end.

```
step   1    2    3    4    5    6    7    8
row A  p p  a    a         a  |                 ends; its row leaves the batch
row B                 p p  b    b         b     its prompt is prefilled by itself, then it joins the others
row C                 p p  c  |
row D                                p p  d
```

New prompts are prefilled in a batch of their own, which gives their first token at once. Before the running
answers get their next token they become rows of the one batch, which copies KV caches. At most PREFILLS steps
with prompts follow each other. Answers whose KV caches cannot become one (an encoder-decoder base, windows of
a fixed size, weights that an adapter brings of its own) stay batches of their own, and take turns.

Method: iteration-level scheduling, Yu et al. 2022 (Orca, OSDI '22). Rows of different mixes share a forward
because a mix is a row of numbers (`core.model.rank_space`).

Letters: B rows, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch

from core.errors import StudioError
from core.model.answer_batch import AnswerBatch
from core.model.columns import SequenceState
from core.model.generate import append_token, make_states, sample
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling

PREFILLS = 3  # steps that read prompts, before one that decodes


@dataclass(frozen=True)
class TokenLogProb:
    """How likely a token was, before temperature and the other settings of the sampling.

    Attributes:
        token: its id.
        log_prob: in nats.
        top: the most likely tokens with their log-probabilities, in nats, the most likely first.
    """

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Answer:
    """One answer of a batch.

    Attributes:
        state: its tokens, its mix, and why it ended.
        prompt: its token ids.
        top: how many of the most likely tokens are recorded beside each token; None records nothing.
        log_probs: one for each token of the answer, where they are recorded.
        error: what ended it too early, or None.
        begun: when it was admitted, in seconds of `time.perf_counter`.
    """

    state: SequenceState
    prompt: Sequence[int]
    top: int | None = None
    log_probs: list[TokenLogProb] = field(default_factory=list)
    error: StudioError | None = None
    begun: float = field(default_factory=time.perf_counter)


class ContinuousBatch:
    """Decodes answers that are admitted at any time.

    Args:
        fast: whether packed weights may answer, where the base has some.
    """

    def __init__(self, resident: Resident, fast: bool = True) -> None:
        self._resident, self._fast = resident, fast
        self._batches: list[AnswerBatch] = []
        self._waiting: list[Answer] = []
        self._answers: dict[SequenceState, Answer] = {}
        self._generators: dict[Hashable, torch.Generator] = {}
        self._admissions = 0
        self._prefills = 0  # steps since the running answers had a token

    @property
    def answers(self) -> list[Answer]:
        """The answers that have not ended."""
        return list(self._answers.values())

    def admit(
        self,
        prompt: Sequence[int],
        mixes: Sequence[Mix],
        samplings: Sequence[Sampling],
        top: int | None = None,
    ) -> list[Answer]:
        """Adds answers to one prompt; they take part from the next step on.

        Args:
            prompt: token ids.
            mixes, samplings: one per answer. Answers of the same seed share their random numbers.
            top: how many of the most likely tokens are recorded beside each token; None records nothing.

        Raises:
            SpecError: the prompt leaves no room for an answer. AdapterError, NotFound: an adapter of a mix
                cannot be used.
        """
        states = make_states(self._resident.base, [prompt] * len(mixes), mixes, samplings)
        self._resident.load_adapters([*(a.state.requested for a in self._answers.values()), *mixes])
        self._admissions += 1
        answers = [Answer(state, prompt, top) for state in states]
        for answer in answers:
            state = answer.state
            state.noise = (self._admissions, state.sampling.seed)
            if state.sampling.temperature > 0:
                self._generators[state.noise] = torch.Generator().manual_seed(state.sampling.seed)
            self._answers[state] = answer
        self._waiting += answers
        return answers

    def step(self) -> list[Answer]:
        """Decodes the first token of new answers, or one token of every other one.

        Returns:
            the answers that were decoded; those with a reason, or an error, have ended and left the batch.
        """
        self._waiting = [a for a in self._waiting if not a.state.reason]
        if self._waiting and not (self._prefills >= PREFILLS and any(b.states for b in self._batches)):
            stepped, self._waiting = self._waiting, []
            self._begin(stepped)
            self._prefills += 1
        else:
            self._join()
            stepped = [self._answers[state] for batch in self._batches for state in batch.states]
            for batch in self._batches:
                self._step(batch)
            self._prefills = 0
        for answer in stepped:
            if answer.state.reason:
                self._forget(answer)
        return stepped

    def cancel(self, answers: Sequence[Answer]) -> None:
        """Ends answers between two steps."""
        for answer in answers:
            if not answer.state.reason:
                answer.state.reason = "cancelled"
            self._forget(answer)
        for batch in self._batches:
            batch.keep_active()
        self._batches = [batch for batch in self._batches if batch.states]

    def _forget(self, answer: Answer) -> None:
        self._answers.pop(answer.state, None)
        if all(other.state.noise != answer.state.noise for other in self._answers.values()):
            self._generators.pop(answer.state.noise, None)

    def _begin(self, answers: list[Answer]) -> None:
        """Prefills new answers as one batch, or one by one where an adapter of one of them cannot be used."""
        for row, answer in enumerate(answers):
            answer.state.row = row
        try:
            batch = AnswerBatch(
                self._resident,
                [a.prompt for a in answers],
                [a.state for a in answers],
                max(a.state.limit for a in answers),
                self._fast,
            )
        except StudioError as e:
            if len(answers) == 1:
                self._end_with_error(answers[0], e)
                return
            for answer in answers:
                self._begin([answer])
            return
        self._batches.append(batch)
        self._step(batch)

    def _step(self, batch: AnswerBatch) -> None:
        """Decodes one token of a batch; answers whose adapters have become unusable end with the error."""
        states = batch.states
        if not states:
            return
        try:
            logits = batch.step()  # (B, V)
        except StudioError as e:
            self._end_unusable(batch, e)
            if batch.states:
                self._step(batch)
            return
        with torch.inference_mode():
            tokens = sample(logits, self._read_history(states), states, self._generators)
            self._record_log_probs(states, logits, tokens)
        eos = set(self._resident.base.eos_ids)
        now = time.perf_counter()
        for state, token in zip(states, tokens.tolist(), strict=True):
            ends = eos | self._resident.find_stop_ids(state.mix)
            append_token(state, token, ends, self._resident.base.tokenizer)
            answer = self._answers[state]
            del answer.log_probs[len(state.ids) :]  # of a token that ends an answer and is not part of it
            state.seconds = now - answer.begun
        batch.append(tokens)

    def _end_unusable(self, batch: AnswerBatch, error: StudioError) -> None:
        """Ends the answers of a batch whose adapters cannot be loaded; all of them, where all can."""
        ended: list[tuple[SequenceState, StudioError]] = []
        for state in batch.states:
            try:
                self._resident.load_adapters([state.mix])
                self._resident.rows([state.mix])
            except StudioError as e:
                ended.append((state, e))
        for state, reason in ended or [(state, error) for state in batch.states]:
            self._end_with_error(self._answers[state], reason)
        batch.keep_active()

    @staticmethod
    def _end_with_error(answer: Answer, error: StudioError) -> None:
        answer.error, answer.state.reason = error, "error"

    def _read_history(self, states: Sequence[SequenceState]) -> torch.Tensor | None:
        """(B, T) prompts and answers so far, for a repetition penalty; None where no row has one.

        Shorter rows repeat their first token on the left, which changes no penalty.
        """
        if all(s.sampling.repetition_penalty == 1.0 for s in states):
            return None
        base = self._resident.base
        rows = []
        for state in states:
            before = (
                [base.tokenizer.decoder_start_token_id]
                if base.family.seq2seq
                else self._answers[state].prompt
            )
            rows.append([*before, *state.ids])
        length = max(map(len, rows))
        return torch.tensor([[row[0]] * (length - len(row)) + row for row in rows], device=base.device)

    def _record_log_probs(
        self, states: Sequence[SequenceState], logits: torch.Tensor, tokens: torch.Tensor
    ) -> None:
        """Records how likely the tokens were, (B,), of logits (B, V)."""
        for b, state in enumerate(states):
            answer = self._answers[state]
            if answer.top is None:
                continue
            log_probs = logits[b].float().log_softmax(-1)
            values, ids = log_probs.topk(min(answer.top, len(log_probs)))
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
            token = int(tokens[b])
            answer.log_probs.append(TokenLogProb(token, float(log_probs[token]), top))

    def _join(self) -> None:
        """Makes as few batches of the running ones as possible."""
        joined: list[AnswerBatch] = []
        for batch in self._batches:
            if batch.states and not any(whole.join(batch) for whole in joined):
                joined.append(batch)
        self._batches = joined
