"""The ids and greedy answers of converted files are llama.cpp's, where its package is installed.

`benchmarks/gguf_bases.py` compares whole models. Random weights of two layers are compared here, so that the
layout of the tests' files is also checked: `gguf_maker.py` writes what llama.cpp reads.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gguf_bases import TEXTS
from core.gguf.conversion import Request, convert, status_of
from tests.core.gguf.gguf_maker import FAMILIES, build_model, byte_tokens, sentencepiece_tokens, write_gguf

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="the package xllamacpp is not installed"
)
# In a process of its own: llama.cpp ends the process on an error.
COMPARE = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from benchmarks.gguf_bases import LlamaCpp, compare_answers, compare_ids
torch.set_num_threads(1)
prompts = [[1, 20, 30, 40, 50, 60, 70], [1, 5], [1, 300, 301, 302, 9, 8, 7, 6, 77, 78, 79, 80]]
for name in sys.argv[2:]:
    folder = Path(sys.argv[1]) / name
    engine, tokenizer = LlamaCpp(Path(f"{folder}.gguf"), 256), AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    equal = compare_answers(engine, model, prompts, 12)
    found = {"differing": compare_ids(engine, tokenizer), "equal": equal}
    print("RESULT", name, json.dumps(found), flush=True)
"""


def write_family(family: str, folder: Path, name: str, tokens: dict[str, Any]) -> None:
    """Writes a file, and converts it into a folder of the same name."""
    file = write_gguf(folder / f"{name}.gguf", build_model(family), tokens)
    (folder / name).mkdir()
    with open(file, "rb") as opened:
        convert(Request(str(file), file.name, status_of(opened), str(folder / name)))


def compare(folder: Path, *names: str) -> dict[str, Any]:
    """Of each file: the texts whose ids differ, and how many of 12 tokens of each answer are equal."""
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, str(folder), *names],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    lines = [line.split(" ", 2) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == len(names), done.stderr[-2000:]
    return {name: json.loads(text) for _, name, text in lines}


@pytest.mark.slow
def test_greedy_answers_of_every_family_are_those_of_llama_cpp(tmp_path: Path) -> None:
    tokens = byte_tokens(tmp_path / "tokenizer")
    own = {**tokens, "pre": "qwen2", "tokens": ["<|endoftext|>", *tokens["tokens"][1:]]}
    for family in FAMILIES:
        write_family(family, tmp_path, family, own if family.startswith("qwen") else tokens)
    found = compare(tmp_path, *FAMILIES)
    assert {name: f["equal"] for name, f in found.items()} == dict.fromkeys(FAMILIES, [12, 12, 12])
    composed = [t for t in TEXTS if unicodedata.normalize("NFC", t) != t]
    assert len(composed) == 1 and found.pop("qwen2")["differing"] == composed, "transformers composes accents"
    assert [name for name, f in found.items() if f["differing"]] == []


def test_ids_of_sentencepiece_vocabularies_are_those_of_llama_cpp(tmp_path: Path) -> None:
    write_family("llama", tmp_path, "model", sentencepiece_tokens())
    assert compare(tmp_path, "model")["model"] == {"differing": [], "equal": [12, 12, 12]}
