"""Exported files give the tokens and answers of transformers in llama.cpp, where it is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.gguf.adapter_writer import write_adapter
from core.store.base_models import EMBEDDED
from tests.core.gguf.export_maker import build_sentencepiece_tokenizer, save_model, write
from tests.core.gguf.gguf_maker import FAMILIES
from tests.core.gguf.test_adapter_writer import make_factors

QUESTIONS = ["Where is the red lamp?", "What is the capital of France?", "Write a short story."]
ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="the package xllamacpp is not installed"
)
# In a process of its own: llama.cpp ends the process on an error. A case is the name of a folder and of a
# file; "scales" load NAME-0.gguf, NAME-1.gguf beside it, and add the updates in NAME-0.npz, NAME-1.npz.
COMPARE = """
import json, sys, urllib.request
from pathlib import Path
import numpy as np, torch, xllamacpp
from transformers import AutoModelForCausalLM, AutoTokenizer
from benchmarks.gguf_bases import TEXTS
torch.set_num_threads(1)
root, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
random_ids = [[1, 20, 30, 40, 50, 60, 70], [1, 5], [1, 300, 301, 302, 9, 8, 7, 6, 77, 78, 79, 80]]
for name, case in cases.items():
    scales = case.get("scales", [])
    settings = xllamacpp.CommonParams()
    settings.model.path = str(root / case.get("file", f"{name}.gguf"))
    settings.n_ctx, settings.n_parallel, settings.warmup = 256, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(str(root / f"{name}-{i}.gguf"), 1.0) for i in range(len(scales))
    ]
    server = xllamacpp.Server(settings)
    def post(path, body):
        url, kind = f"{server.listening_address}/{path}", {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), kind)
        return json.load(urllib.request.urlopen(request, timeout=300))
    folder = root / case.get("base", name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for i, scale in enumerate(scales):
        with np.load(root / f"{name}-{i}.npz") as updates, torch.no_grad():
            for module in updates.files:
                model.get_submodule(module).weight += scale * torch.from_numpy(updates[module])
    chats = [[{"role": "user", "content": question}] for question in case.get("questions", [])]
    prompts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats
    ] or random_ids
    equal, answers = [], []
    for prompt in prompts:
        ours = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0
        )[0, len(prompt):].tolist()
        theirs = post("completion", {
            "prompt": prompt, "n_predict": 12, "temperature": 0, "cache_prompt": False, "ignore_eos": True,
            "return_tokens": True, "repeat_penalty": 1.0,
            "lora": [{"id": i, "scale": scale} for i, scale in enumerate(scales)],
        })["tokens"]
        equal.append(next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), 12))
        answers.append(ours)
    texts = [*TEXTS, *(f"one{t}two" for t in tokenizer.all_special_tokens)] if case.get("texts") else []
    differing = [t for t in texts if post("tokenize", {
        "content": t, "add_special": True, "parse_special": True})["tokens"] != tokenizer(t).input_ids]
    result = {"equal": equal, "differing": differing, "answers": answers}
    print("RESULT " + json.dumps([name, result]), flush=True)
"""


def compare(folder: Path, cases: dict[str, Any]) -> dict[str, Any]:
    """Of each case: how many of 12 tokens of each answer are equal, and the texts whose ids differ."""
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, str(folder), json.dumps(cases)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    found = dict(json.loads(line) for line in lines)
    assert found.keys() == cases.keys(), done.stderr[-2000:]
    return found


def write_adapters(folder: Path, name: str, family: str) -> None:
    """Writes two adapters, with equal and with different ranks, and their updates as arrays."""
    for i, ranks in enumerate(((4,), (3, 8, 5))):
        config, factors = make_factors(family, ranks)
        factors = {m: (a * 0.1, (b if i else -b[::-1].copy()) * 0.1) for m, (a, b) in factors.items()}
        write_adapter(factors, config, folder / f"{name}-{i}.gguf", f"Adapter {i}")
        np.savez(folder / f"{name}-{i}.npz", **{m: b @ a for m, (a, b) in factors.items()})


def test_models_and_mixes_of_adapters_answer_as_in_transformers(tmp_path: Path) -> None:
    save_model(tmp_path / "llama")
    write(tmp_path / "llama", tmp_path / "llama.gguf", "F32")
    write(EMBEDDED, tmp_path / "half.gguf", "F16")
    save_model(tmp_path / "pieces", tokenizer=build_sentencepiece_tokenizer)
    write(tmp_path / "pieces", tmp_path / "pieces.gguf", "F32")
    for name in ("one", "mix"):
        write_adapters(tmp_path, name, "llama")
    adapted = {"base": "llama", "file": "llama.gguf"}
    found = compare(
        tmp_path,
        {
            "llama": {"texts": True},
            "half": {"base": str(EMBEDDED), "questions": QUESTIONS, "texts": True},
            "pieces": {"texts": True},
            "one": {**adapted, "scales": [1.0, 0.0]},
            "mix": {**adapted, "scales": [0.75, -0.5]},
        },
    )
    assert {name: f["equal"] for name, f in found.items()} == dict.fromkeys(found, [12, 12, 12])
    assert [name for name, f in found.items() if f["differing"]] == []
    different = {json.dumps(found[name]["answers"]) for name in ("llama", "one", "mix")}
    assert len(different) == 3, "the adapters count"


@pytest.mark.slow
def test_every_family_and_its_adapters_answer_as_in_transformers(tmp_path: Path) -> None:
    cases: dict[str, Any] = {}
    for family in FAMILIES:
        save_model(tmp_path / family, family)
        write(tmp_path / family, tmp_path / f"{family}.gguf")
        write_adapters(tmp_path, f"{family}-mix", family)
        cases[family] = {"texts": family != "qwen2"}
        cases[f"{family}-mix"] = {"base": family, "file": f"{family}.gguf", "scales": [0.5, -1.0]}
    found = compare(tmp_path, cases)
    assert {name: f["equal"] for name, f in found.items()} == dict.fromkeys(cases, [12, 12, 12])
    assert [name for name, f in found.items() if f["differing"]] == []
