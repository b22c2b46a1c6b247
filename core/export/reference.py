"""What the studio says, as a certificate compares it: greedy answers, and the logits at their last tokens.

It runs on the model's thread, a prompt at a time, in the base's own precision. The logits go to a file of
float32, so that memory holds those of one prompt only.

Letters: T positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import SpecError
from core.model.generate import encode_prompt, generate, inference_mode_for
from core.model.resident import Resident
from core.progress import Progress
from core.spec.mix import Mix, Sampling

ANSWER_TOKENS = 40
POSITIONS = (
    ANSWER_TOKENS + 1
)  # of each prompt with its answer: each token of the answer is predicted, and its end
BATCH = 8  # prompts that are answered at once
LOGITS_LIMIT = 50_000_000  # values in the file: 200 MB
FILE, LOGITS = "reference.json", "logits.f32"


@dataclass(frozen=True)
class Question:
    """A prompt to compare.

    Attributes:
        text: of the prompt. is_text: it is continued as a text; else the chat template surrounds it.
    """

    text: str
    is_text: bool = False


@dataclass(frozen=True)
class ReferencePrompt:
    """One prompt with the studio's answer.

    Attributes:
        prompt, answer: token ids; the answer is without its stop token.
        text, answer_text: as texts.
        positions: how many of the last positions of prompt and answer have logits.
    """

    prompt: list[int]
    answer: list[int]
    text: str
    answer_text: str
    positions: int


@dataclass(frozen=True)
class Reference:
    """What the studio says.

    Attributes:
        folder: holds the logits.
        vocabulary: V. stops: ids that end an answer. template: the chat template.
        precision: in which the studio computed, in words. is_quantized: whether its weights are.
        is_seq2seq: the answer goes to a decoder of its own.
        start: the decoder's first token, where it has one.
    """

    folder: str
    vocabulary: int
    stops: list[int]
    template: str
    precision: str
    is_quantized: bool
    prompts: list[ReferencePrompt]
    is_seq2seq: bool = False
    start: int = 0

    def read_logits(self) -> list[np.ndarray[Any, Any]]:
        """The logits of each prompt, (T, V), mapped from the file."""
        total = sum(p.positions for p in self.prompts)
        shape = (total, self.vocabulary)
        mapped = np.memmap(Path(self.folder) / LOGITS, dtype="<f4", mode="r", shape=shape)
        ends = np.cumsum([p.positions for p in self.prompts])
        return [mapped[end - p.positions : end] for p, end in zip(self.prompts, ends, strict=True)]


def answer_questions(
    resident: Resident, mix: Mix, questions: Sequence[Question], folder: Path
) -> Generator[Progress | Reference, None, None]:
    """Answers prompts with a mix, and keeps the logits.

    Prompts that do not fit into the base's context are left out.

    Args:
        folder: receives the logits.

    Yields:
        Progress after every step of decoding and after every prompt; last, the Reference.

    Raises:
        SpecError: no prompt fits. AdapterError: the mix cannot be used.
    """
    tokenizer, model = resident.base.tokenizer, resident.model
    is_seq2seq = resident.base.family.seq2seq
    start = int(getattr(model.config, "decoder_start_token_id", None) or 0)
    answered: list[ReferencePrompt] = []
    vocabulary = written = 0
    prompts = list(_encode(resident, questions))
    with open(folder / LOGITS, "wb") as file:
        for begin in range(0, len(prompts), BATCH):
            batch = prompts[begin : begin + BATCH]
            answers: list[tuple[list[int], str]] = []
            for answers in _answer(resident, mix, [ids for _, ids in batch]):  # noqa: B007
                yield Progress(begin, len(prompts), "The studio answers")
            for (question, ids), (answer, text) in zip(batch, answers, strict=True):
                logits = _compute_logits(resident, mix, ids, answer, start)
                vocabulary = logits.shape[1]
                if answered and written + logits.size > LOGITS_LIMIT:
                    break
                file.write(np.ascontiguousarray(logits, dtype="<f4").tobytes())
                written += logits.size
                answered.append(ReferencePrompt(ids, answer, question.text, text, len(logits)))
                yield Progress(len(answered), len(prompts), "The studio answers")
    if not answered:
        raise SpecError(
            "No prompt of the data fits into the context of the base.", "Choose data with shorter prompts."
        )
    reference = Reference(
        str(folder), vocabulary, sorted(resident.find_stop_ids(mix) | set(resident.base.eos_ids)),
        str(tokenizer.chat_template or ""), _describe_precision(resident),
        resident.base.quantization != "none", answered, is_seq2seq, start,
    )  # fmt: skip
    (folder / FILE).write_text(json.dumps(asdict(reference)), encoding="utf-8")
    yield reference


def read_reference(folder: Path) -> Reference:
    """Reads what `answer_questions` kept."""
    raw = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return Reference(**{**raw, "prompts": [ReferencePrompt(**p) for p in raw["prompts"]]})


def _encode(resident: Resident, questions: Sequence[Question]) -> Iterator[tuple[Question, list[int]]]:
    """The prompts that fit into the context, as ids."""
    for question in questions:
        with contextlib.suppress(SpecError):
            yield question, encode_prompt(resident, question.text, not question.is_text, ANSWER_TOKENS)


def _answer(
    resident: Resident, mix: Mix, prompts: Sequence[Sequence[int]]
) -> Iterator[list[tuple[list[int], str]]]:
    """Yields after every step of decoding; last, the ids and the text of each answer, without stop tokens."""
    sampling = Sampling(max_new_tokens=ANSWER_TOKENS, temperature=0.0)
    stops = resident.find_stop_ids(mix) | set(resident.base.eos_ids)
    states: list[Any] = []
    for states in generate(resident, list(prompts), [mix] * len(prompts), [sampling] * len(prompts)):
        yield []
    found = []
    for state in states:
        ids = list(state.ids)
        while ids and ids[-1] in stops:
            ids.pop()
        found.append((ids, state.column(resident.base.tokenizer).text))
    yield found


def _compute_logits(
    resident: Resident, mix: Mix, ids: Sequence[int], answer: Sequence[int], start: int
) -> np.ndarray[Any, Any]:
    """(T, V) of the last positions."""
    device = resident.base.device
    resident.load_adapters([mix])
    with inference_mode_for(resident, resident.rows([mix])):
        if resident.base.family.seq2seq:
            logits = resident.model(
                input_ids=torch.tensor([list(ids)], device=device),
                decoder_input_ids=torch.tensor([[start, *answer]], device=device),
            ).logits[0, -POSITIONS:]
        else:
            both = torch.tensor([[*ids, *answer]], device=device)
            count = min(POSITIONS, both.shape[1])
            logits = resident.model(input_ids=both, logits_to_keep=count).logits[0, -count:]
    return logits.float().cpu().numpy()  # type: ignore[no-any-return]


def _describe_precision(resident: Resident) -> str:
    base = resident.base
    if base.quantization != "none":
        return f"{base.quantization}, computed in {str(next(base.model.parameters()).dtype)[6:]}"
    return str(next(base.model.parameters()).dtype).removeprefix("torch.")
