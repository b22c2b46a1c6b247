"""Dataset rows to training and validation sequences, for one run.

Sequences are packed: several short ones share a row of the batch and do not attend to each other
(`core.data.packing` says how). Before the rows are built, `core.model.packing_check` runs the base on packed
rows; if exchanging its neighbours changes the output of a sequence, the run pads instead, and a note says so.
Which sequences share a row is drawn once from the seed; the order of the rows is drawn by the trainer. An
effective batch counts rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets

from core.data import first_rules
from core.data.conversations import check_conversations, list_texts
from core.data.datasets import Dataset, read_split
from core.data.encoding import (
    EncodedSequence,
    boundary_ids,
    count_with_special_tokens,
    encode_documents,
    encode_span_corruption,
    encode_text,
    encode_turns,
    is_seq2seq,
    text_prefix,
)
from core.data.packing import PackingStats, build_rows, split_into_windows
from core.data.replay import add_replay
from core.data.sections import join_parts
from core.errors import SpecError
from core.model.packing_check import leaks
from core.model.resident import Resident
from core.spec.training import TrainSpec
from core.store.workspace import Workspace

VALIDATION_ROWS = 200  # validation scores at most this many sequences, the same ones every time
OPENING_WORDS = 4  # words of a validation text that a sample prompt takes


@dataclass(frozen=True)
class RunSequences:
    """The sequences of a run.

    Attributes:
        rows: training rows, as `collate` takes them.
        validation: sequences that are scored and never trained.
        stats: what the training rows hold; the fields of the run's "data" event.
    """

    rows: datasets.Dataset
    validation: list[EncodedSequence]
    stats: PackingStats


def build_sequences(
    workspace: Workspace,
    resident: Resident,
    spec: TrainSpec,
    dataset: Dataset,
    general_texts: Callable[[], Sequence[str]],
    note: Callable[[str], None] = lambda text: None,
) -> RunSequences:
    """Encodes and packs the rows of a dataset for a run.

    Args:
        general_texts: returns the built-in texts that are replayed when the spec names no replay dataset.
        note: receives a sentence when the sequences differ from what the user may expect.

    Raises:
        SpecError: the dataset is of another kind than the run, or the max length exceeds the base's context.
    """
    _check_fit(spec, dataset, resident.base.context)
    tokenizer = resident.base.tokenizer
    train_rows = read_split(workspace, dataset.id, "train")
    validation_rows = read_split(workspace, dataset.id, "val")
    validation_rows = random.Random(spec.seed).sample(
        validation_rows, min(len(validation_rows), VALIDATION_ROWS)
    )
    window_count = 0
    if spec.kind == "domain":
        texts = join_parts(train_rows)
        replay = _encode_replay(workspace, tokenizer, spec, general_texts) if spec.replay_share else []
        own = first_rules.encode_documents if spec.rules == 1 else encode_documents
        documents = add_replay(list(own(tokenizer, texts)), replay, spec.replay_share, spec.seed)
        windows = _split_documents(tokenizer, documents, spec)
        sequences = [e for document in windows for e in document]
        window_count = sum(len(document) for document in windows if len(document) > 1)
        encode = first_rules.encode_text if spec.rules == 1 else encode_text
        encoded = (encode(tokenizer, r["text"], spec.max_length) for r in validation_rows)
        validation = [e for document in encoded for e in document][:VALIDATION_ROWS]
    else:
        texts = [text for r in train_rows for text in list_texts(r["messages"])]
        sequences = _encode_conversations(resident, spec, train_rows, note)
        validation = _encode_conversations(resident, spec, validation_rows)
    if count := count_with_special_tokens(tokenizer, texts):
        note(f"{count} texts contain the tokenizer's special tokens; they are read as plain characters.")
    packed = spec.packing
    if packed and (why := leaks(resident)):
        packed = False
        note(f"Sequences are padded, not packed: {why}.")
    random.Random(spec.seed).shuffle(sequences)  # decides which sequences share a row
    rows, stats = build_rows(sequences, spec.max_length, packed)
    return RunSequences(datasets.Dataset.from_list(rows), validation, replace(stats, windows=window_count))


def _check_fit(spec: TrainSpec, dataset: Dataset, context: int) -> None:
    """Checks the kind of the dataset and the max length against the spec and the base.

    Raises:
        SpecError: the dataset is of another kind than the run, or the max length exceeds the context.
    """
    if dataset.kind != spec.kind:
        raise SpecError(
            f"{dataset.name!r} is a {dataset.kind} dataset.",
            f"A {spec.kind} run needs a {spec.kind} dataset.",
        )
    if spec.max_length > context:
        raise SpecError(
            f"Max length must be at most the base's context of {context} tokens, got {spec.max_length}.",
            f"Choose {context} or less.",
        )


def _encode_conversations(
    resident: Resident,
    spec: TrainSpec,
    rows: Sequence[dict[str, Any]],
    note: Callable[[str], None] = lambda text: None,
) -> list[EncodedSequence]:
    """The sequences of task rows: one per row, or several where a template rewrites earlier turns."""
    tokenizer, eos_ids = resident.base.tokenizer, resident.base.eos_ids
    if spec.rules == 1:
        return [first_rules.encode_task(tokenizer, r["messages"], spec.max_length, eos_ids) for r in rows]
    for text in check_conversations(tokenizer, rows):
        note(text)
    encoded = (encode_turns(tokenizer, r["messages"], spec.max_length, eos_ids) for r in rows)
    return [sequence for conversation in encoded for sequence in conversation]


def _split_documents(
    tokenizer: Any, documents: list[list[int]], spec: TrainSpec
) -> list[list[EncodedSequence]]:
    """The sequences of every document: one, or the windows of a long one."""
    if is_seq2seq(tokenizer):
        return encode_span_corruption(tokenizer, documents, spec.max_length, spec.seed)
    if spec.rules == 1:
        boundary, repeat = [tokenizer.eos_token_id], False
    else:
        boundary, repeat = boundary_ids(tokenizer), bool(text_prefix(tokenizer))
    return [split_into_windows(boundary, ids, spec.max_length, spec.overlap, repeat) for ids in documents]


def _encode_replay(
    workspace: Workspace, tokenizer: Any, spec: TrainSpec, general_texts: Callable[[], Sequence[str]]
) -> list[list[int]]:
    """Token ids of the general texts that are mixed into a domain run."""
    if spec.replay_dataset:
        texts = join_parts(read_split(workspace, spec.replay_dataset, "train"))
        own = first_rules.encode_documents if spec.rules == 1 else encode_documents
        return list(own(tokenizer, texts))
    return list(encode_documents(tokenizer, general_texts(), allow_special_tokens=True))


def sample_prompts(workspace: Workspace, spec: TrainSpec) -> list[str]:
    """The spec's prompts, or one from the validation split: a question, or the first words of a text."""
    if spec.sample_prompts:
        return list(spec.sample_prompts)
    row = read_split(workspace, spec.dataset, "val", limit=1)[0]
    if spec.kind == "task":
        return [_question_of(row["messages"])]
    return [" ".join(row["text"].split()[:OPENING_WORDS])]


def _question_of(messages: Sequence[dict[str, Any]]) -> str:
    """The text of the last question of a conversation."""
    questions = [m["content"] for m in messages if m["role"] == "user"]
    return str(questions[-1]) if questions else str(messages[0]["content"])
