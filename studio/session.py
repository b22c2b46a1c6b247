"""One browser session: the answers being generated, and the last prompt, mixes and frame.

How answers read on the page belongs to `answers`; the mixes to choose from belong to `mix_choices`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.engine import Engine
from core.engine.mix_names import name_mix
from core.engine.worker import make_lock
from core.spec.mix import Mix, Sampling
from studio import fields

SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "stop")


@dataclass
class Exchange:
    """One question of a conversation and its answer.

    Attributes:
        continue_text: the prompt is the beginning of a text, which the answer continues.
        column: the newest state of the answer; None before its first word.
        left_out: how many earlier questions the base's context had no room for.
        note: what the answer waits for, or "".
        labels: the names of the adapters, by id, when it was answered.
        rendered: the column that was rendered last, once it is complete, and its tree.
        passages: the prompt with the passages that it answers from; None without documents.
        answer: the id under which the answer is recorded, or "".
        is_good: how the user has judged it, or None.
    """

    prompt: str
    continue_text: bool = False
    column: Any = None
    left_out: int = 0
    note: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    rendered: tuple[Any, Any] | None = None
    passages: Any = None
    answer: str = ""
    is_good: bool | None = None


@dataclass
class Session:
    """State of one browser session. It lives in `gr.State`, so on the server.

    Attributes:
        serial: number of the current answer; the browser drops frames with a lower one.
        stream: the engine's stream while an answer is being generated, else None.
        prompt: the last prompt.
        names: one name for each column of `frame`.
        frame: the newest frame of the last answer.
        ballot: the blind test in progress: which mix has which letter. It is never sent to the page.
        labels: the names of the adapters, by id, when the last answer began.
        exchanges: the conversation so far; its last exchange may be in progress.
    """

    serial: int = 0
    stream: Any = None
    prompt: str = ""
    names: list[str] = field(default_factory=list)
    frame: Any = None
    ballot: Any = None
    labels: dict[str, str] = field(default_factory=dict)
    exchanges: list[Exchange] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = make_lock()  # guards `frame`, with the mixes of its stream

    def __deepcopy__(self, memo: Any) -> Session:
        return Session()  # Gradio copies the initial value of a state for every session

    def stop(self) -> None:
        """Stops the answer being generated; its reader gets no further frames."""
        self.serial += 1
        self.ballot = None
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def retune(self, engine: Engine, mixes: Sequence[Mix]) -> bool:
        """Continues the answer being generated under other mixes.

        Returns:
            False when no answer is being generated.
        """
        with self._lock:
            if self.stream is None or self.frame is None or self.frame.done:
                return False
            engine.chat.retune(self.stream, mixes)
            return True

    def stream_frames(
        self,
        engine: Engine,
        prompt: str,
        mixes: Sequence[Mix],
        sampling: Sampling,
        chat: bool = True,
        same_noise: bool = True,
        ballot: Any = None,
        *,
        messages: Sequence[dict[str, str]] | None = None,
        thinking: bool = False,
        passages: Sequence[Any] | None = None,
    ) -> Iterator[Any]:
        """Generates the answers of all mixes in one batch, and again for mixes that came too late for them.

        Args:
            prompt: the question, or with `chat=False` the text to continue.
            chat: apply the chat template.
            same_noise: every column samples with the same random numbers.
            ballot: the blind test that these answers belong to.
            messages: the conversation that ends with the prompt, as chat messages; None for the prompt alone.
            thinking: answer with a thought, on bases that think.
            passages: for each column the passages that it answers from, or None; see `engine.chat.stream`.

        Yields:
            the engine's frames, until the answers end or a newer call of this method replaces them.
        """
        while True:
            self.stop()
            serial = self.serial
            asked = prompt if messages is None or not chat else messages
            stream = engine.chat.stream(
                asked,
                mixes,
                sampling,
                chat,
                same_noise,
                thinking and chat,
                exact=ballot is not None,
                passages=passages,
            )
            self.stream, self.prompt, self.frame, self.ballot = stream, prompt, None, ballot
            self.labels = engine.library.labels()
            self.names = [m.name or name_mix(m, self.labels) for m in mixes]
            yield from self._read_frames(stream, serial)
            late = stream.live_mixes.late
            if not late or self.serial != serial:
                return
            mixes = late

    def _read_frames(self, stream: Any, serial: int) -> Iterator[Any]:
        """The frames of one answer, until it ends, is stopped or is replaced."""
        try:
            for frame in stream:
                if self.serial != serial:
                    break
                with self._lock:  # a mix comes before the last frame, or after it
                    self.frame = frame
                yield frame
            if self.stream is None and self.frame is not None and not self.frame.done:
                self.frame = _end_columns(self.frame)  # stopped, not replaced: the text so far stays
                yield self.frame
        finally:
            stream.close()


@dataclass(frozen=True)
class PromptSettings:
    """How the prompts of a tab are read and answered.

    Attributes:
        continue_text: prompts are the beginnings of texts.
        system: the system prompt of a chat, or "".
        thinking: answers begin with a thought, on bases that think.
        documents: ids of the datasets that answers cite; empty for none.
    """

    sampling: Sampling
    continue_text: bool = False
    system: str = ""
    thinking: bool = False
    documents: tuple[str, ...] = ()


def read_settings(values: Sequence[Any]) -> PromptSettings:
    """Reads the values of the components in `SAMPLING`, and of those of `PromptSettings` after them.

    Those after the sampling may be left out, from the end.
    """
    count = len(SAMPLING)
    given = list(values[count:])
    rest: tuple[Any, ...] = (False, "", False, ())
    continue_text, system, thinking, documents = [*given, *rest[len(given) :]]
    return PromptSettings(
        read_sampling(values[:count]),
        bool(continue_text),
        str(system or "").strip(),
        bool(thinking),
        tuple(d for d in documents or () if isinstance(d, str)),
    )


def make_messages(system: str, earlier: Sequence[Exchange], prompt: str) -> list[dict[str, str]]:
    """The chat messages of a conversation that a prompt continues.

    Args:
        system: the system prompt, or "".
        earlier: the exchanges so far; those that continue a text, and those without an answer, are left out.
    """
    messages = [{"role": "system", "content": system.strip()}] if system.strip() else []
    for exchange in earlier:
        if exchange.continue_text or exchange.column is None or not exchange.column.text:
            continue
        messages.append({"role": "user", "content": exchange.prompt})
        messages.append({"role": "assistant", "content": exchange.column.text})
    return [*messages, {"role": "user", "content": prompt}]


def read_sampling(values: Sequence[Any]) -> Sampling:
    """Reads the sampling settings from the values of the components in `SAMPLING`, in that order."""
    return Sampling(**fields.read(Sampling, dict(zip(SAMPLING, values, strict=True))))


def _end_columns(frame: Any) -> Any:
    """The frame with its unfinished columns marked as stopped."""
    columns = [c if c.done else replace(c, done=True, reason="cancelled") for c in frame.columns]
    return replace(frame, columns=columns, done=True)
