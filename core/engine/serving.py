"""Answers for other programs: requests join one running batch, whatever their mixes. `engine.serving`.

```
any thread     submit ─> waiting ──┐            Completion.put / end ─> the reader of each request
worker thread            take ──> ContinuousBatch.step ──┘   one stream of the worker, while it has answers
```

The page's own answers (`engine.chat`) are batches of their own, because their mixes may change at any token.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.engine.chat import check_passages, place_passages
from core.engine.worker import Stream, Worker, make_closing_error, make_lock
from core.errors import AdapterError, Busy, DamagedRecord, NotFound, SpecError, StudioError
from core.spec.mix import Mix, Sampling

if TYPE_CHECKING:
    from core.model.columns import Column
    from core.model.continuous_batch import Answer, ContinuousBatch
    from core.model.resident import Resident
    from core.retrieve.passages import Passage
    from core.retrieve.prompt import PassagePrompt

logger = logging.getLogger(__name__)
ROW_LIMIT = 64  # answers that are decoded at once; further requests wait
WAITING_LIMIT = 256  # requests that wait; further ones are refused
CALLER_LIMIT = 64  # requests of one caller that wait or are answered
CHOICE_LIMIT = 16  # answers to one request
TOP_LIMIT = 20  # likely tokens that are listed beside each token
FRAME_SECONDS = 0.02  # shortest time between two values of one request


@dataclass(frozen=True)
class ScoredToken:
    """A token of an answer as text, with its log-probability in nats and that of the likeliest tokens."""

    text: str
    log_prob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Progress:
    """The answers to one request at one moment; each text is a prefix of the next one.

    Attributes:
        columns: one for each choice.
        tokens: per choice its tokens with their log-probabilities; empty without `Request.top_tokens`.
        prompt_tokens: length of the prompt, in tokens.
        first_token_seconds: from the request to its first token; 0 before it.
        done: whether all choices have ended.
        prompt: the question with its passages; None for an answer without documents.
    """

    columns: tuple[Column, ...]
    tokens: tuple[tuple[ScoredToken, ...], ...]
    prompt_tokens: int
    first_token_seconds: float
    done: bool
    prompt: PassagePrompt | None = None


@dataclass(frozen=True)
class Request:
    """What a program asks for.

    Attributes:
        prompt: a text, or chat messages with `role` and `content`.
        mix: the mix that answers.
        sampling: of the first choice; choice i samples with seed + i.
        chat: render the prompt with the chat template; otherwise the text is continued as it is.
        choices: how many answers.
        top_tokens: how many of the likeliest tokens are listed beside each token; None lists none, and no
            log-probabilities.
        thinking: answers begin with a thought, on bases that think.
        follows: whether the reader wants the answers while they grow, or only the complete ones.
        caller: the program or person that asks, with at most CALLER_LIMIT requests; "" is not counted.
        id: of the request, under which its answers are recorded; "" is a new one.
        falls_back: whether the base answers where an adapter of the mix is missing or damaged; the stamp of
            the answer then has the reason as "fallback".
        fallback: why `mix` is the base in place of another one, where that is known already, or "".
        passages: those that stand before the last message (`engine.retrieval.search`), the best first, as
            many as fit beside the whole conversation and an answer of at most half of the context; None for
            an answer without documents. `Progress.prompt` says which fit.
    """

    prompt: str | Sequence[dict[str, str]]
    mix: Mix
    sampling: Sampling
    chat: bool = True
    choices: int = 1
    top_tokens: int | None = None
    thinking: bool = False
    follows: bool = True
    caller: str = ""
    id: str = ""
    falls_back: bool = False
    fallback: str = ""
    passages: tuple[Passage, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.choices <= CHOICE_LIMIT:
            raise SpecError(
                f"The number of answers must be between 1 and {CHOICE_LIMIT}, got {self.choices}."
            ).at("n")
        if self.top_tokens is not None and not 0 <= self.top_tokens <= TOP_LIMIT:
            raise SpecError(
                f"The number of likely tokens must be between 0 and {TOP_LIMIT}, got {self.top_tokens}."
            ).at("top_logprobs")
        check_passages([self.passages], 1, self.chat)


class Completion(Stream):
    """The answers to a request while they are generated: a stream of `Progress`.

    Attributes:
        id: of the request.
        begun, first_token_at, sent_at: when it was submitted, had its first token, and its newest value, in
            seconds of `time.monotonic`; 0 before that.
        scored: per choice its tokens as text; empty without `Request.top_tokens`.
        prompt: the question with its passages, once it is encoded; None without `Request.passages`.
        on_change: is called without arguments, on the worker's thread, after every new value and at the end.
    """

    def __init__(self, request: Request, is_served: Callable[[], bool]) -> None:
        super().__init__(is_served)
        self.request = request
        self.id = request.id or secrets.token_hex(8)
        self.begun = time.monotonic()
        self.first_token_at = 0.0
        self.sent_at = 0.0
        self.scored: list[list[ScoredToken]] = [[] for _ in range(request.choices)]
        self.prompt: PassagePrompt | None = None
        self.on_change: Callable[[], None] = lambda: None

    def put(self, value: Any) -> None:
        super().put(value)
        self.on_change()

    def end(self, error: BaseException | None = None) -> None:
        super().end(error)
        self.on_change()


class _Service(Stream):
    """The worker's stream that decodes the answers to all requests; it has no reader of its own."""

    def __init__(
        self, is_served: Callable[[], bool], on_end: Callable[[_Service, BaseException | None], None]
    ) -> None:
        super().__init__(is_served)
        self._on_end = on_end

    @property
    def is_abandoned(self) -> bool:
        return False

    def end(self, error: BaseException | None = None) -> None:
        super().end(error)
        self._on_end(self, error)


class Serving:
    """Answers requests of other programs. Safe to call from any thread.

    Args:
        resident: returns the resident base; called on the model's thread only.
        record: gets the id of a request that has ended, the mixes that were asked for, the answers, and the
            name of the base; called on the model's thread.
    """

    def __init__(
        self,
        worker: Worker,
        resident: Callable[[], Resident],
        record: Callable[[str, Sequence[Mix], Sequence[Column], str], None] = lambda *_: None,
    ) -> None:
        self._worker, self._resident, self._record = worker, resident, record
        self._lock = make_lock()  # guards the three fields below
        self._waiting: deque[Completion] = deque()
        self._beginning: list[Completion] = []  # no longer waiting, and not all running yet
        self._service: _Service | None = None
        self._running: dict[Completion, list[Answer]] = {}  # used on the worker's thread only
        self.steps = 0  # decoding steps so far
        self.tokens = 0  # tokens decoded so far

    @property
    def queue_length(self) -> int:
        """How many requests have not begun."""
        return len(self._waiting)

    @property
    def active_count(self) -> int:
        """How many requests are being answered."""
        return len(self._running)

    def submit(self, request: Request) -> Completion:
        """Queues a request, and returns immediately.

        Returns:
            a stream of `Progress`. Reading it raises StudioError for a prompt or an adapter that cannot be
            used. Close it to stop the answers.

        Raises:
            Busy: WAITING_LIMIT requests wait already, or the caller has CALLER_LIMIT. Closing
        """
        with self._lock:
            self._worker.check_open()
            if len(self._waiting) >= WAITING_LIMIT:
                raise Busy(f"{WAITING_LIMIT} requests wait for an answer already.", "Try again in a moment.")
            self._check_share(request.caller)
            completion = Completion(request, lambda: self._worker.is_running)
            if self._service is None:
                service = _Service(lambda: self._worker.is_running, self._end_all)
                self._worker.attach(service, self._serve)
                self._service = service
            self._waiting.append(completion)
        return completion

    def _check_share(self, caller: str) -> None:
        """Refuses a caller that has too many requests already."""
        if not caller:
            return
        every = {*self._waiting, *list(self._beginning), *list(self._running)}
        own = [c for c in every if c.request.caller == caller]
        if len(own) >= CALLER_LIMIT:
            raise Busy(
                f"You have {CALLER_LIMIT} requests that wait or are being answered already.",
                "Wait until one has ended.",
            )

    # --- the worker's thread

    def _serve(self) -> Generator[None, None, None]:
        from core.model.continuous_batch import ContinuousBatch

        resident = self._resident()  # the worker ends this stream before it exchanges the base
        batch = ContinuousBatch(resident)
        while True:
            with self._lock:
                if not self._waiting and not self._running:
                    self._service = None
                    return
                self._beginning = self._take()
            while self._beginning:
                self._begin(self._beginning[0], batch, resident)
                self._beginning.pop(0)
            self._drop_unread(batch)
            self.tokens += len(batch.step())
            self.steps += 1
            self._report(resident)
            yield None

    def _take(self) -> list[Completion]:
        """Waiting requests that fit into the batch."""
        rows = sum(len(answers) for answers in self._running.values())
        taken = []
        while self._waiting and rows + self._waiting[0].request.choices <= ROW_LIMIT:
            taken.append(self._waiting.popleft())
            rows += taken[-1].request.choices
        return taken

    def _begin(self, completion: Completion, batch: ContinuousBatch, resident: Resident) -> None:
        request = completion.request
        if completion.is_abandoned:
            completion.end()
            return
        try:
            longest = min(request.sampling.max_new_tokens, resident.base.context - 1)
            ids, completion.prompt = _encode(resident, request, longest)
            samplings = [
                replace(request.sampling, seed=(request.sampling.seed + i) % 2**31, max_new_tokens=longest)
                for i in range(request.choices)
            ]
            self._running[completion] = self._admit(request, batch, ids, samplings)
        except StudioError as e:
            completion.end(e)
        except Exception as e:  # a defect: it ends this request, and no other
            logger.exception("A request could not begin")
            completion.end(e)

    @staticmethod
    def _admit(
        request: Request, batch: ContinuousBatch, ids: Sequence[int], samplings: Sequence[Sampling]
    ) -> list[Answer]:
        fallback = request.fallback
        try:
            answers = batch.admit(ids, [request.mix] * request.choices, samplings, request.top_tokens)
        except (AdapterError, DamagedRecord, NotFound) as e:
            if not request.falls_back:
                raise
            fallback, base = e.what, Mix(name=request.mix.name)
            answers = batch.admit(ids, [base] * request.choices, samplings, request.top_tokens)
        for answer in answers:
            answer.state.fallback = fallback
        return answers

    def _drop_unread(self, batch: ContinuousBatch) -> None:
        for completion in [c for c in self._running if c.is_abandoned]:
            batch.cancel(self._running.pop(completion))
            completion.end()

    def _report(self, resident: Resident) -> None:
        """Gives every request its progress, and ends those whose answers have all ended."""
        now = time.monotonic()
        for completion, answers in list(self._running.items()):
            error = next((a.error for a in answers if a.error), None)
            done = all(a.state.reason for a in answers)
            if error is not None and done:
                del self._running[completion]
                completion.end(error)
                continue
            if not done and not any(a.state.ids for a in answers):
                continue  # its prompt has not been read yet
            if not completion.first_token_at:
                completion.first_token_at = now
            if done or (completion.request.follows and now - completion.sent_at >= FRAME_SECONDS):
                completion.sent_at = now
                progress = self._describe(completion, answers, resident, done)
                if done:  # so that a reader of the answer can judge it
                    mixes = [completion.request.mix] * completion.request.choices
                    self._record(completion.id, mixes, progress.columns, resident.base.name)
                completion.put(progress)
            if done:
                del self._running[completion]
                completion.end()

    @staticmethod
    def _describe(
        completion: Completion, answers: Sequence[Answer], resident: Resident, done: bool
    ) -> Progress:
        tokenizer = resident.base.tokenizer
        for answer, scored in zip(answers, completion.scored, strict=True):
            for token in answer.log_probs[len(scored) :]:
                top = tuple((tokenizer.decode([i]), p) for i, p in token.top)
                scored.append(ScoredToken(tokenizer.decode([token.token]), token.log_prob, top))
        return Progress(
            tuple(a.state.column(tokenizer) for a in answers),
            tuple(map(tuple, completion.scored)),
            len(answers[0].prompt),
            completion.first_token_at - completion.begun,
            done,
            completion.prompt,
        )

    def _end_all(self, service: _Service, error: BaseException | None) -> None:
        """Ends every request, where the worker has ended the service: the base is exchanged, or it closes."""
        with self._lock:
            if self._service is not service:  # it ended by itself, without requests
                return
            self._service = None
            open_requests = dict.fromkeys([*self._running, *self._beginning, *self._waiting])
            self._running.clear()
            self._beginning.clear()
            self._waiting.clear()
        for completion in open_requests:
            completion.end(error or make_closing_error())


def _encode(resident: Resident, request: Request, longest: int) -> tuple[list[int], PassagePrompt | None]:
    """The token ids of a request, and its question with its passages.

    Args:
        longest: answer, in tokens.

    Raises:
        SpecError: the conversation is too long, also without passages. DataError: the template refuses it.
    """
    from core.model.generate import encode_prompt

    if request.passages is None:
        return encode_prompt(resident, request.prompt, request.chat, 1, request.thinking), None
    given = request.prompt
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    reserved = min(longest, resident.base.context // 2)  # programs often leave the longest answer open
    built = place_passages(resident, messages, request.passages, reserved, request.thinking)
    messages[-1] = {**messages[-1], "content": built.text}
    return encode_prompt(resident, messages, True, 1, request.thinking), built
