"""Tiny real things to test with: a random two-layer model on disk, a workspace, small data files."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Tiny models are fastest on one thread, and two processes that each take all cores slow each other down
# tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402

CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SENTENCES = [
    f"The {a} {b} is kept in the {c} room."
    for a in ("red", "blue", "green", "old")
    for b in ("lamp", "bell", "pump", "clock")
    for c in ("north", "south", "cold", "dry")
]


def build_tiny_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=special[2:]
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)


def build_tiny_llama(folder: Path, seed: int = 0, **changes: int) -> Path:
    """A random Llama of two layers with its tokenizer, saved as transformers saves it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    build_tiny_tokenizer(folder)
    shape = {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "bos_token_id": 1,
        **changes,
    }
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Forty-eight short documents in one text file."""
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n---\n\n".join(SENTENCES[:48]), encoding="utf-8")
    return file


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Forty-eight questions with answers."""
    file = tmp_path / "pairs.jsonl"
    rows = [{"question": f"Where is the {s.split()[1]} {s.split()[2]}?", "answer": s} for s in SENTENCES[:48]]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return file


def held(engine: Any, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Answers that wait after every frame until the event is set: they do not end before they are stopped,
    however slow their reader is.
    """
    goes_on, write = threading.Event(), engine.chat._frames

    def waiting(*asked: Any) -> Iterator[Any]:
        for frame in write(*asked):
            yield frame
            assert frame is None or goes_on.wait(60)

    monkeypatch.setattr(engine.chat, "_frames", waiting)
    return goes_on
