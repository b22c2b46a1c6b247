"""Writing text: N mixes answer in one batch, a token a step.

A Python generator that yields after every step, so that the worker can interleave it with training
and anyone can close it. Knows a resident base, token ids and dice; knows no pages, files or threads.
Letters: B rows still writing, V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from core.data.encoding import encode_chat, encode_opening
from core.errors import SpecError
from core.model.decoding import stepper
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling


@dataclass(frozen=True)
class Turn:
    """A place in an answer where its mix changed: the characters and tokens before it, and the new mix's stamp."""

    at: int
    tokens: int
    mix: str
    stamp: dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One mix's answer so far.

    Attributes:
        turns: where the mix changed while it was written, in order.
        seconds: from the start of reading the prompt to the newest token.
        reason: why it ended: "end" (the model's own), "length", "stop", or "" while it writes.
        stamp: what the model really had active, read from the tensors that it multiplied by.
    """

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    done: bool = False
    reason: str = ""
    stamp: dict[str, Any] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()


def encode_prompt(
    resident: Resident, prompt: str | Sequence[dict[str, str]], chat: bool, room: int
) -> list[int]:
    """Token ids of a prompt, which is a text or chat messages.

    Raises:
        SpecError: empty, or too long to leave `room` tokens in the context.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not messages or not messages[-1]["content"].strip():
        raise SpecError("The prompt is empty.", "Write a question or the beginning of a text.")
    tokenizer = resident.base.tokenizer
    if chat:
        ids = encode_chat(tokenizer, messages, generate=True)
    else:
        ids = encode_opening(tokenizer, messages[-1]["content"])
    context = resident.base.context
    if (
        max(len(ids), room) if resident.base.family.seq2seq else len(ids) + room
    ) > context:  # an encoder and a decoder have a context each
        raise SpecError(
            f"The prompt has {len(ids)} tokens and the answer may have {room}, but the base reads {context}{'' if resident.base.family.seq2seq else ' together'}.",
            "Shorten the prompt or the longest answer.",
        )
    return ids


@contextlib.contextmanager
def speaking(resident: Resident, rows: Sequence[dict[str, float]]) -> Iterator[None]:
    """The model in eval mode under the given mix rows; training finds it as it was."""
    awake = _hush(resident)
    try:
        with torch.inference_mode(), resident.mixer.engaged(rows):
            yield
    finally:
        for module in awake:
            vars(module)["training"] = True


def _hush(resident: Resident) -> list[Any]:
    """Puts the model in eval mode; returns the modules that were not, for a run that is in training.

    This happens at every token while a run trains, so it goes over a list and writes the flag itself:
    `train()` walks the tree through Module's attribute checks, which takes as long as a small model's step.
    """
    model = resident.peft or resident.model
    if not model.training:
        return []
    if not resident.trainee_id:  # nobody trains: peft leaves train mode on whenever an adapter comes
        model.eval()
        return []
    awake = [m for m in (model, *resident.mixer.modules) if m.training]
    for module in awake:
        vars(module)["training"] = False
    return awake


class Writer:
    """One column's state while it writes; `column()` is what the outside sees of it."""

    def __init__(self, row: int, mix: Mix, sampling: Sampling) -> None:
        self.row = row
        self.mix = mix
        self.sampling = sampling
        self.ids: list[int] = []
        self.seconds = 0.0
        self.reason = ""
        self.cut: str | None = None  # the text up to a stop text
        self.stamp: dict[str, Any] = {}
        self.turned: list[tuple[int, str, dict[str, Any]]] = []  # (tokens before, mix, stamp)
        chain: list[Any] = []
        if sampling.repetition_penalty != 1.0:
            chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.temperature > 0:
            chain.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                chain.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1.0:
                chain.append(TopPLogitsWarper(sampling.top_p))
        self.chain = LogitsProcessorList(chain)

    def turn(self, mix: Mix) -> None:
        """Goes on under another mix from the next token."""
        self.mix, self.stamp = mix, {}

    def read(self, stamp: dict[str, Any]) -> None:
        """Takes down what the model really had active, once for every mix."""
        if not self.stamp:
            self.stamp = stamp
            if self.ids:
                self.turned.append((len(self.ids), self.mix.name or str(self.mix), stamp))

    def column(self, tokenizer: Any) -> Column:
        """The answer so far, decoded."""
        whole = self.cut if self.cut is not None else tokenizer.decode(self.ids, skip_special_tokens=True)
        text = whole.strip() if self.reason else whole
        lead = len(whole) - len(whole.lstrip()) if self.reason else 0
        turns = tuple(
            Turn(
                min(max(len(tokenizer.decode(self.ids[:n], skip_special_tokens=True)) - lead, 0), len(text)),
                n,
                name,
                stamp,
            )
            for n, name, stamp in self.turned
        )
        stamp = {**self.stamp, "mix": self.mix.name or str(self.mix), "sampling": self.sampling.to_json()}
        return Column(text, len(self.ids), self.seconds, bool(self.reason), self.reason, stamp, turns)


def generate(
    resident: Resident,
    prompts: Sequence[Sequence[int]],
    mixes: Sequence[Mix],
    samplings: Sequence[Sampling],
    present: Callable[[], Sequence[Mix]] | None = None,
) -> Iterator[list[Writer]]:
    """Writes one column a (prompt, mix, sampling) triple, all in one batch.

    Rows with the same seed draw with the same dice: one Gumbel noise vector a step and seed, so that
    identical mixes write identical text and differences come from the mix alone (Gumbel-max sampling,
    Maddison et al. 2014, arXiv 1411.0030). A row that ends leaves the batch. The cache of keys and values
    belongs to a mix: when a column's mix changes, its text so far is read again under the new one.

    Args:
        prompts: token ids, one list a column.
        present: asked before every token for the mixes of all columns, which may have changed.

    Yields:
        All writers after every step (the same objects; decode them with `column` when someone looks).
    """
    base, tokenizer = resident.base, resident.base.tokenizer
    writers = [Writer(i, mix, s) for i, (mix, s) in enumerate(zip(mixes, samplings, strict=True))]
    writing = list(writers)
    reader = stepper(base, prompts, max(s.max_new_tokens for s in samplings))
    # Only a repetition penalty reads what was written before.
    history = reader.history if any(s.repetition_penalty != 1.0 for s in samplings) else None
    dice = {s.seed: torch.Generator().manual_seed(s.seed) for s in samplings if s.temperature > 0}
    eos = set(base.eos_ids)
    busy = 0.0  # seconds spent here, not in whatever we are interleaved with
    while writing:
        begin = time.perf_counter()
        if present is not None and _turned(writing, present()):
            reader.again([w.row for w in writing], [w.ids for w in writing])
        mixes = [w.mix for w in writing]
        resident.ensure(mixes)  # an adapter may have ended its training, or left, since the last step
        with speaking(resident, resident.rows(mixes)):
            picked = _choose(reader.step(), history, writing, dice)  # (B,)
            chosen = picked.tolist()
            for b, writer in enumerate(writing):
                if not writer.stamp:
                    writer.read(resident.stamp(b))
        busy += time.perf_counter() - begin
        for b, writer in enumerate(writing):
            _take(writer, chosen[b], eos, tokenizer)
            writer.seconds = busy
        still = [b for b, w in enumerate(writing) if not w.reason]
        with torch.inference_mode():
            reader.take(picked)
            history = None if history is None else torch.cat([history, picked.unsqueeze(1)], dim=1)
            if len(still) < len(writing) and still:
                keep = torch.tensor(still, device=base.device)
                reader.keep(keep)
                history = None if history is None else history[keep]
        writing = [writing[b] for b in still]
        yield writers


def _turned(writing: Sequence[Writer], mixes: Sequence[Mix]) -> bool:
    """Gives each column the mix it is to go on with; true when one of them changed."""
    changed = [
        w
        for w in writing
        if mixes[w.row] is not w.mix and replace(mixes[w.row], name="") != replace(w.mix, name="")
    ]
    for writer in changed:
        writer.turn(mixes[writer.row])
    return bool(changed)


def _choose(
    logits: torch.Tensor,
    history: torch.Tensor | None,
    writing: Sequence[Writer],
    dice: dict[int, torch.Generator],
) -> torch.Tensor:
    """One token a row, (B,). A seed's dice are thrown once a step, however many rows are still writing with it.

    Rows that are drawn in the same way are worked on together, and the device is not waited for.
    """
    alike: dict[tuple[float, ...], list[int]] = {}
    for b, writer in enumerate(writing):
        if writer.chain:
            s = writer.sampling
            alike.setdefault((s.temperature, s.top_k, s.top_p, s.repetition_penalty), []).append(b)
    scores = logits
    noise = {
        seed: _gumbel(dice[seed], logits.shape[1])
        for seed in {w.sampling.seed for w in writing if w.sampling.temperature > 0}
    }
    for rows in alike.values():
        whole = len(rows) == len(writing)
        index = torch.tensor(rows, device=logits.device)
        first = writing[rows[0]]
        read = history if whole or history is None else history[index]
        part = first.chain(read, logits if whole else logits[index])
        if first.sampling.temperature > 0:
            part = part + torch.stack([noise[writing[b].sampling.seed] for b in rows]).to(part.device)
        scores = part if whole else scores.index_copy(0, index, part)
    return scores.argmax(dim=-1)


def _gumbel(generator: torch.Generator, size: int) -> torch.Tensor:
    """A vector of standard Gumbel noise, from a generator of our own on the CPU."""
    uniform = torch.rand(size, generator=generator).clamp_(1e-20, 1 - 1e-7)
    return -torch.log(-torch.log(uniform))


def _take(writer: Writer, token: int, eos: set[int], tokenizer: Any) -> None:
    if token in eos:
        writer.reason = "end"
        return
    writer.ids.append(token)
    if writer.sampling.stop:
        text = tokenizer.decode(writer.ids, skip_special_tokens=True)
        ends = [text.index(s) for s in writer.sampling.stop if s and s in text]
        if ends:
            writer.cut, writer.reason = text[: min(ends)], "stop"
            return
    if len(writer.ids) >= writer.sampling.max_new_tokens:
        writer.reason = "length"
