"""The part "rows" of `benchmarks.evidence`: what the adapters cost in the batch of four rows.

Base, base + documents, mix, and mix + documents answer one question in one batch. The bare base answers the
same four prompts, with as many tokens, in a batch of its own. Both sides take turns; the fastest time of each
counts, in wall clock and in CPU time of the process. The mix has two adapters on all linear layers.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_base_decoding import ADAPTERS, Fastest, Row, adapter_config, fill_adapters
from core.model.base import load_base
from core.model.fast_choice import pack_for_answers
from core.model.fast_decoding import PackedDecoder
from core.model.resident import Resident
from core.store.workspace import Workspace

QUESTION_TOKENS, PASSAGE_TOKENS = 24, 200  # of a prompt without documents; of its passages
TOKENS = 32  # of every answer
ROUNDS, QUICK_ROUNDS = 8, 2
MIX: Row = {ADAPTERS[0]: 1.0, ADAPTERS[1]: 0.7}


def measure_rows(folder: Path | str, quick: bool) -> dict[str, Any]:
    """The cost of four rows over that of the bare base.

    Args:
        folder: the base; "embedded" is the one in `assets`.

    Returns:
        `four_rows_over_bare` and `prefill_over_bare` as {"wall", "cpu"}, and milliseconds of each side.
    """
    base = load_base(str(folder), quantization="none", device="cpu")
    base.packed = pack_for_answers(base)
    with tempfile.TemporaryDirectory() as workspace:
        resident = Resident(base, Workspace(Path(workspace)))
        for name in ADAPTERS:
            resident.add_adapter(name, adapter_config())
        fill_adapters(resident.peft)
        resident.update_layout()
        room = base.context - QUESTION_TOKENS - TOKENS
        prompts = draw_prompts(base.model.config.vocab_size, min(PASSAGE_TOKENS, room))
        sides = {name: (Fastest(), Fastest()) for name in ("four", "bare")}
        rows: dict[str, list[Row]] = {"four": [{}, {}, MIX, MIX], "bare": [{}] * 4}
        for _ in range(1 + (QUICK_ROUNDS if quick else ROUNDS)):
            for name, (whole, prefill) in sides.items():
                answer(resident, rows[name], prompts, whole, prefill)
    figures: dict[str, Any] = {"passage_tokens": len(prompts[1]) - len(prompts[0]), "tokens": TOKENS}
    for name, part in (("four_rows_over_bare", 0), ("prefill_over_bare", 1)):
        four, bare = sides["four"][part], sides["bare"][part]
        figures[name] = {"wall": round(four.wall / bare.wall, 2), "cpu": round(four.cpu / bare.cpu, 2)}
        figures[f"{name}_ms"] = [round(1000 * four.wall, 1), round(1000 * bare.wall, 1)]
    return figures


def draw_prompts(vocabulary: int, passages: int) -> list[list[int]]:
    """Token ids of the four prompts: a question, and the question behind its passages, each twice."""
    rng = random.Random(0)
    question = [rng.randrange(10, vocabulary) for _ in range(QUESTION_TOKENS)]
    documents = [rng.randrange(10, vocabulary) for _ in range(passages)]
    return [question, [*documents, *question]] * 2


@torch.inference_mode()
def answer(
    resident: Resident, rows: list[Row], prompts: list[list[int]], whole: Fastest, prefill: Fastest
) -> None:
    """Answers all prompts once; adds the time of the whole answers, and that of reading the prompts."""
    base = resident.base

    def run() -> None:
        decoder = PackedDecoder(base, base.packed, resident.mixer, prompts, TOKENS)
        logits: list[torch.Tensor] = []
        prefill.measure(lambda: logits.append(decoder.step()))
        for _ in range(TOKENS - 1):
            decoder.append(logits.pop().argmax(-1))
            logits.append(decoder.step())

    with resident.mixer.activate(rows):
        whole.measure(run)
