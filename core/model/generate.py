"""Generation: N mixes answer in one batch, one decoded token per row and step.

`generate` is a Python generator that yields after every step, so that the worker can interleave it with
training and a caller can close it at any step. It works on a resident base and token ids; pages, files and
threads belong to higher layers.

```
prompts ─> batch.step (prefill, then one token per row) ─> logits (B, V) ─> sample ─> append_token ─> yield
              ↑ restart: prefill again when a mix changed <── poll_mixes, before every step
```

Letters: B rows (sequences) still being decoded, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from core.data.tokens.encoding import encode_conversation, encode_text_prompt
from core.errors import SpecError
from core.model.activation import inference_mode_for as inference_mode_for  # re-exported, too
from core.model.answer_batch import AnswerBatch
from core.model.columns import Column as Column  # re-exported for callers of `generate`
from core.model.columns import SequenceState
from core.model.detokenizer import Detokenizer
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling


def encode_prompt(
    resident: Resident,
    prompt: str | Sequence[dict[str, str]],
    chat: bool,
    max_new_tokens: int,
    thinking: bool = False,
) -> list[int]:
    """Encodes a prompt and checks that prompt and answer fit into the context.

    Args:
        prompt: a text, or chat messages with `role` and `content`.
        chat: whether to apply the chat template; without it, the last message is continued as plain text.
        max_new_tokens: tokens to reserve for the answer.
        thinking: whether the answer begins with a thought, with bases that think.

    Returns:
        Token ids; of a conversation with the index of its last message (`Prompt`).

    Raises:
        SpecError: the prompt is empty, or prompt and answer are too long. The prompt of an encoder-decoder
            base goes to the encoder and the answer to the decoder, so each is compared with the context.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not messages or not messages[-1]["content"].strip():
        raise SpecError("The prompt is empty.", "Write a question or the beginning of a text.")
    tokenizer = resident.base.tokenizer
    if chat:
        ids: list[int] = encode_conversation(tokenizer, messages, thinking)
    else:
        ids = encode_text_prompt(tokenizer, messages[-1]["content"])
    context = resident.base.context
    if resident.base.family.seq2seq:
        needed, rule = max(len(ids), max_new_tokens), f"may have at most {context} tokens each"
    else:
        needed, rule = len(ids) + max_new_tokens, f"together may have at most {context} tokens"
    if needed > context:
        raise SpecError(
            f"With this base, prompt and answer {rule}, got {len(ids)} and {max_new_tokens}.",
            "Shorten the prompt or lower the longest answer.",
        )
    return ids


def generate(
    resident: Resident,
    prompts: Sequence[Sequence[int]],
    mixes: Sequence[Mix],
    samplings: Sequence[Sampling],
    poll_mixes: Callable[[], Sequence[Mix]] | None = None,
    fast: bool = False,
) -> Iterator[list[SequenceState]]:
    """Decodes one answer per (prompt, mix, sampling), all in one batch.

    *Same noise in every column*: rows with the same seed add the same Gumbel noise vector to their logits at
    each step, so identical mixes give identical text and every difference comes from the mix (Gumbel-max
    sampling, Maddison et al. 2014, arXiv 1411.0030). A row that ends leaves the batch.

    *A mix can change in mid-answer*: the mixes are polled before every token. Keys and values in the KV cache
    were computed under a mix and are valid only for it. When one column's mix changes,
    prompts and answers so far are prefilled again under the new mixes, in one forward, and decoding continues
    from there. A new name alone is not a change. The column records a `MixChange` with a new stamp.

    An answer is never longer than the room that its prompt leaves in the context.

    Args:
        prompts: token ids, one list per column.
        mixes, samplings: one per column.
        poll_mixes: returns the current mixes of all columns; called before every token.
        fast: whether packed weights may answer, where the base has some. Answers that are measured or
            compared with earlier ones come from the base's own precision.

    Yields:
        The states of all columns after every step. They are the same objects each time;
        `SequenceState.column` decodes one of them.

    Raises:
        SpecError: a prompt leaves no room for an answer.

    Example:
        >>> ids = encode_prompt(resident, "Where is the red lamp?", chat=True, max_new_tokens=32)
        >>> mixes = [Mix(), Mix(weights={"my-adapter": 1.0})]
        >>> for states in generate(resident, [ids] * 2, mixes, [Sampling(max_new_tokens=32)] * 2):
        ...     pass
        >>> [s.column(resident.base.tokenizer).text for s in states]
    """
    base, tokenizer = resident.base, resident.base.tokenizer
    states = make_states(base, prompts, mixes, samplings)
    active = list(states)
    batch = AnswerBatch(resident, prompts, states, max(s.limit for s in states), fast)
    # Only a repetition penalty reads the tokens so far.
    history = batch.history if any(s.repetition_penalty != 1.0 for s in samplings) else None
    generators: dict[Hashable, torch.Generator] = {
        s.seed: torch.Generator().manual_seed(s.seed) for s in samplings if s.temperature > 0
    }
    eos = set(base.eos_ids)
    seconds = 0.0  # spent in this generator, without the work that it is interleaved with
    while active:
        begin = time.perf_counter()
        if poll_mixes is not None and change_mixes(active, poll_mixes()):
            batch.restart()
        logits = batch.step()  # (B, V)
        with torch.inference_mode():
            tokens = sample(logits, history, active, generators)  # (B,)
        token_list = tokens.tolist()
        seconds += time.perf_counter() - begin
        for b, state in enumerate(active):
            append_token(state, token_list[b], eos | resident.find_stop_ids(state.mix), tokenizer)
            state.seconds = seconds
        batch.append(tokens)
        if history is not None:
            alive = [b for b, s in enumerate(active) if not s.reason]
            history = torch.cat([history, tokens.unsqueeze(1)], dim=1)[alive]
        active = batch.states
        yield states


def answer_room(base: Any, prompt: Sequence[int]) -> int:
    """Tokens that an answer to a prompt may have; 0 or less where the prompt fills the context.

    An encoder-decoder base has the whole context on each side; the decoder's start token takes one position.
    """
    if base.family.seq2seq:
        return base.context - 1 if len(prompt) <= base.context else 0
    return int(base.context) - len(prompt)


def make_states(
    base: Any, prompts: Sequence[Sequence[int]], mixes: Sequence[Mix], samplings: Sequence[Sampling]
) -> list[SequenceState]:
    """Makes the states of a generation, before its first token.

    Raises:
        SpecError: a prompt leaves no room for an answer.
    """
    detokenizer = Detokenizer(base.tokenizer)
    states = []
    for row, (prompt, mix, sampling) in enumerate(zip(prompts, mixes, samplings, strict=True)):
        room = answer_room(base, prompt)
        if room < 1:
            raise SpecError(
                f"A prompt must leave room for an answer in the context of {base.context} tokens, "
                f"got {len(prompt)} tokens.",
                "Shorten the prompt.",
            )
        state = SequenceState(row, mix, sampling, min(sampling.max_new_tokens, room), detokenizer)
        state.opens_in_thought = detokenizer.is_in_thought(prompt)
        states.append(state)
    return states


def change_mixes(active: Sequence[SequenceState], mixes: Sequence[Mix]) -> bool:
    """Gives each state its current mix, and returns whether one of them changed in more than its name."""
    changes = [
        s
        for s in active
        if mixes[s.row] is not s.requested and replace(mixes[s.row], name="") != replace(s.requested, name="")
    ]
    for state in changes:
        state.change_mix(mixes[state.row])
    return bool(changes)


def sample(
    logits: torch.Tensor,
    history: torch.Tensor | None,
    active: Sequence[SequenceState],
    generators: Mapping[Hashable, torch.Generator],
) -> torch.Tensor:
    """Picks the next token of every row.

    Rows with equal sampling settings are processed together, without waiting for the device. Each generator
    draws one noise vector a step, however many rows still use it.

    Args:
        logits: (B, V).
        history: (B, T) prompt and answer so far, or None where no row has a repetition penalty.
        active: the B states.
        generators: `SequenceState.noise` -> its random generator, on the CPU.

    Returns:
        (B,) token ids.
    """
    groups: dict[tuple[float, ...], list[int]] = {}  # equal sampling settings -> rows
    for b, state in enumerate(active):
        if state.processors:
            s = state.sampling
            groups.setdefault((s.temperature, s.top_k, s.top_p, s.repetition_penalty), []).append(b)
    scores = logits
    noise = {
        key: _gumbel_noise(generators[key], logits.shape[1])
        for key in {s.noise for s in active if s.sampling.temperature > 0}
    }
    for rows in groups.values():
        is_all = len(rows) == len(active)
        index = torch.tensor(rows, device=logits.device)
        first = active[rows[0]]
        input_ids = history if is_all or history is None else history[index]
        part = first.processors(input_ids, logits if is_all else logits[index])
        if first.sampling.temperature > 0:
            part = part + torch.stack([noise[active[b].noise] for b in rows]).to(part.device)
        scores = part if is_all else scores.index_copy(0, index, part)
    return scores.argmax(dim=-1)


def _gumbel_noise(generator: torch.Generator, size: int) -> torch.Tensor:
    """Draws a vector of standard Gumbel noise on the CPU; torch's global generator is not touched."""
    uniform = torch.rand(size, generator=generator).clamp_(1e-20, 1 - 1e-7)
    return -torch.log(-torch.log(uniform))


def append_token(state: SequenceState, token: int, eos: set[int], tokenizer: Any) -> None:
    """Appends a token to an answer, and ends the answer at an end token, a stop string or its length limit.

    Args:
        eos: the ids of the base's end tokens; they are not appended.
    """
    if token in eos:
        state.reason = "end"
        return
    state.ids.append(token)
    if state.sampling.stop and state.end_at_stop(tokenizer):
        return
    if len(state.ids) >= state.limit:
        state.reason = "length"
