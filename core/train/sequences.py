"""Dataset rows to training and validation sequences, for one run.

Sequences are packed: several short ones share a row of the batch and do not attend to each other
(`core.data.tokens.packing` says how). Before the rows are built, `core.model.packing_check` runs the base on
packed rows; if exchanging its neighbours changes the output of a sequence, the run pads instead, and a note
says so. Which sequences share a row is drawn once from the seed; the order of the rows is drawn by the
trainer. An effective batch counts rows.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import datasets

from core.data.datasets import Dataset, iterate_split, read_split
from core.data.documents.sections import iterate_texts, join_parts
from core.data.replay import add_replay
from core.data.tokens import first_rules, token_cache
from core.data.tokens.conversations import check_conversations, list_texts
from core.data.tokens.encoding import (
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
from core.data.tokens.packing import PackingStats, build_rows, split_into_windows
from core.data.tokens.token_table import TableRows, TableWriter, TokenTable, build_table_rows
from core.errors import SpecError
from core.model.packing_check import leaks
from core.model.resident import Resident
from core.spec.training import TrainSpec
from core.store.workspace import Workspace

VALIDATION_ROWS = 200  # validation scores at most this many sequences, the same ones every time
BLOCK_ROWS = 1000  # rows of a split that are encoded at once
OPENING_WORDS = 4  # words of a validation text that a sample prompt takes

Item = TypeVar("Item")


@dataclass(frozen=True)
class RunSequences:
    """The sequences of a run.

    Attributes:
        rows: training rows, as `collate` takes them.
        validation: sequences that are scored and never trained.
        stats: what the training rows hold; the fields of the run's "data" event.
    """

    rows: datasets.Dataset | TableRows
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
    sequences, window_count, special = _encode_training(
        workspace, resident, spec, dataset, general_texts, note
    )
    validation = _encode_validation(workspace, resident, spec, dataset)
    if special:
        note(f"{special} texts contain the tokenizer's special tokens; they are read as plain characters.")
    packed = spec.packing
    if packed and (why := leaks(resident)):
        packed = False
        note(f"Sequences are padded, not packed: {why}.")
    order = list(range(len(sequences)))
    random.Random(spec.seed).shuffle(order)  # decides which sequences share a row
    if isinstance(sequences, TokenTable):
        table_rows, stats = build_table_rows(sequences, order, spec.max_length, packed)
        return RunSequences(table_rows, validation, replace(stats, windows=window_count))
    rows, stats = build_rows([sequences[i] for i in order], spec.max_length, packed)
    return RunSequences(datasets.Dataset.from_list(rows), validation, replace(stats, windows=window_count))


def _encode_validation(
    workspace: Workspace, resident: Resident, spec: TrainSpec, dataset: Dataset
) -> list[EncodedSequence]:
    """The sequences of a sample of the validation rows, drawn from the seed."""
    tokenizer, count = resident.base.tokenizer, dataset.splits["val"]
    drawn = random.Random(spec.seed).sample(range(count), min(count, VALIDATION_ROWS))
    wanted = set(drawn)
    found = {i: r for i, r in enumerate(iterate_split(workspace, dataset.id, "val")) if i in wanted}
    rows = [found[i] for i in drawn if i in found]
    if spec.kind == "task":
        return _encode_conversations(resident, spec, rows)
    encode = first_rules.encode_text if spec.rules == 1 else encode_text
    encoded = (encode(tokenizer, r["text"], spec.max_length) for r in rows)
    return [e for document in encoded for e in document][:VALIDATION_ROWS]


def _encode_training(
    workspace: Workspace,
    resident: Resident,
    spec: TrainSpec,
    dataset: Dataset,
    general_texts: Callable[[], Sequence[str]],
    note: Callable[[str], None],
) -> tuple[Sequence[EncodedSequence], int, int]:
    """The training sequences, the windows of long texts among them, and the texts with control tokens.

    The training split is encoded in blocks, or comes from the dataset's cache of tokens
    (`core.data.tokens.token_cache`). Encoder-decoder bases and runs under the first rules, whose sequences
    have another form, encode it as a whole.
    """
    tokenizer = resident.base.tokenizer
    if is_seq2seq(tokenizer) or spec.rules == 1:
        return _encode_as_lists(workspace, resident, spec, dataset, general_texts, note)

    def encode_task_rows(writer: TableWriter) -> tuple[list[str], int]:
        notes = check_conversations(tokenizer, iterate_split(workspace, dataset.id, "train"))
        special = 0
        for rows in _iterate_blocks(iterate_split(workspace, dataset.id, "train")):
            special += count_with_special_tokens(
                tokenizer, [t for r in rows for t in list_texts(r["messages"])]
            )
            for row in rows:
                for e in encode_turns(tokenizer, row["messages"], spec.max_length, resident.base.eos_ids):
                    writer.append(e)
        return notes, special

    def encode_texts(writer: TableWriter) -> tuple[list[str], int]:
        special = 0
        for texts in _iterate_blocks(iterate_texts(iterate_split(workspace, dataset.id, "train"))):
            special += count_with_special_tokens(tokenizer, texts)
            for ids in encode_documents(tokenizer, texts):
                writer.append_document(ids)
        return [], special

    parts = {
        "dataset": dataset.sha256,
        "split": dataset.split_sha256.get("train", ""),
        "kind": spec.kind,
        "tokenizer": token_cache.digest_tokenizer(tokenizer),
        **({"max_length": spec.max_length, "ends": resident.base.eos_ids} if spec.kind == "task" else {}),
    }
    encode = encode_task_rows if spec.kind == "task" else encode_texts
    split = token_cache.load_or_encode(workspace, dataset.id, dataset.splits["train"], parts, encode)
    for text in split.notes:
        note(text)
    if spec.kind == "task":
        return split.table, 0, split.special
    replay = _encode_replay(workspace, tokenizer, spec, general_texts) if spec.replay_share else []
    documents = add_replay(list(split.table.documents()), replay, spec.replay_share, spec.seed)
    writer, window_count = TableWriter(), 0
    for windows in _split_into_windows(tokenizer, documents, spec):
        window_count += len(windows) if len(windows) > 1 else 0
        for window in windows:
            writer.append(window)
    return writer.finish(), window_count, split.special


def _iterate_blocks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of at most BLOCK_ROWS items."""
    iterator = iter(items)
    while block := list(itertools.islice(iterator, BLOCK_ROWS)):
        yield block


def _encode_as_lists(
    workspace: Workspace,
    resident: Resident,
    spec: TrainSpec,
    dataset: Dataset,
    general_texts: Callable[[], Sequence[str]],
    note: Callable[[str], None],
) -> tuple[Sequence[EncodedSequence], int, int]:
    """As `_encode_training`, for sequences that a `TokenTable` does not hold."""
    tokenizer = resident.base.tokenizer
    train_rows = read_split(workspace, dataset.id, "train")
    if spec.kind == "task":
        texts = [text for r in train_rows for text in list_texts(r["messages"])]
        sequences = _encode_conversations(resident, spec, train_rows, note)
        return sequences, 0, count_with_special_tokens(tokenizer, texts)
    texts = join_parts(train_rows)
    replay = _encode_replay(workspace, tokenizer, spec, general_texts) if spec.replay_share else []
    own = first_rules.encode_documents if spec.rules == 1 else encode_documents
    documents = add_replay(list(own(tokenizer, texts)), replay, spec.replay_share, spec.seed)
    windows = list(_split_into_windows(tokenizer, documents, spec))
    window_count = sum(len(document) for document in windows if len(document) > 1)
    sequences = [e for document in windows for e in document]
    return sequences, window_count, count_with_special_tokens(tokenizer, texts)


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


def _split_into_windows(
    tokenizer: Any, documents: Sequence[Sequence[int]], spec: TrainSpec
) -> Iterator[list[EncodedSequence]]:
    """The sequences of every document: one, or the windows of a long one."""
    if is_seq2seq(tokenizer):
        yield from encode_span_corruption(tokenizer, map(list, documents), spec.max_length, spec.seed)
        return
    if spec.rules == 1:
        boundary, repeat = [tokenizer.eos_token_id], False
    else:
        boundary, repeat = boundary_ids(tokenizer), bool(text_prefix(tokenizer))
    for ids in documents:
        plain = ids if isinstance(ids, list) else ids.tolist()  # type: ignore[attr-defined]
        yield split_into_windows(boundary, plain, spec.max_length, spec.overlap, repeat)


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
