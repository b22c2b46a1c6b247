"""Decoding on a real base: our decoder, llama.cpp (xllamacpp) and transformers with peft, in one process.

The sides take turns in short measurements, and the fastest time of each counts, in wall clock and in CPU time
of the process. On a busy machine CPU time is the steadier of the two. llama.cpp runs requests with different
adapter scales one after the other, so eight mixes take it eight times one request; it is measured without
adapters, which favours it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from core.model import families
from core.model.base import load_base
from core.model.decoding import CausalDecoder, all_logits
from core.model.fast_choice import TEXT, pack_for_answers
from core.model.fast_decoding import PackedDecoder
from core.model.mixing import MixRow
from core.model.resident import Resident
from core.store.workspace import Workspace

PROMPT = "The history of the lighthouse begins in 1842, when the town council voted to build one"
LONG_PROMPT_TOKENS = 200
RANK = 16
ADAPTERS = ("first", "second")
EIGHT = [MixRow({"first": i / 8, "second": 1 - i / 16}) for i in range(8)]
TWO = [MixRow({"first": 1.0, "second": 0.7})]
Row = dict[str, float]


@dataclass
class Fastest:
    """The fastest of several measurements, in seconds."""

    wall: float = float("inf")
    cpu: float = float("inf")

    def add(self, wall: float, cpu: float, count: float = 1) -> None:
        """Adds a measurement of `count` equal parts."""
        self.wall, self.cpu = min(self.wall, wall / count), min(self.cpu, cpu / count)

    def measure(self, job: Callable[[], Any]) -> None:
        """Runs a job once."""
        wall, cpu = time.perf_counter(), time.process_time()
        job()
        self.add(time.perf_counter() - wall, time.process_time() - cpu)


class Ours:
    """The resident base with two adapters on all layers; `packed` or in its own precision."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        base = load_base(str(folder), quantization="none", device="cpu")
        base.packed = pack_for_answers(base)
        self.base, self.resident = base, Resident(base, Workspace(tempfile.mkdtemp()))
        for name in ADAPTERS:
            self.resident.add_adapter(name, adapter_config())
        fill_adapters(self.resident.peft)
        self.resident.update_layout()
        self.prompt = base.tokenizer(PROMPT).input_ids
        self.long_prompt = (self.prompt * LONG_PROMPT_TOKENS)[:LONG_PROMPT_TOKENS]

    def make_decoder(self, prompt: list[int], rows: int, packed: bool) -> PackedDecoder | CausalDecoder:
        """A decoder of this prompt in every row."""
        prompts = [prompt] * rows
        if packed:
            return PackedDecoder(self.base, self.base.packed, self.resident.mixer, prompts, 64)
        return CausalDecoder(self.base, prompts, 64)

    @torch.inference_mode()
    def decode(self, fastest: Fastest, rows: list[Row], steps: int, packed: bool = True) -> None:
        """Measures single decoding steps after a prefill."""
        with self.resident.mixer.activate(rows):
            decoder = self.make_decoder(self.prompt, len(rows), packed)
            logits = decoder.step()
            for _ in range(steps):
                decoder.append(logits.argmax(-1))
                wall, cpu = time.perf_counter(), time.process_time()
                logits = decoder.step()
                fastest.add(time.perf_counter() - wall, time.process_time() - cpu)

    @torch.inference_mode()
    def prefill(self, packed: bool = True) -> None:
        """Reads the long prompt and computes the logits of the first token."""
        with self.resident.mixer.activate([{}]):
            self.make_decoder(self.long_prompt, 1, packed).step()

    @torch.inference_mode()
    def compare_precisions(self, rows: list[Row]) -> dict[str, float]:
        """Largest logit difference, agreement and divergence of the packed weights on a text."""
        ids = self.base.tokenizer(TEXT).input_ids
        with self.resident.mixer.activate(rows):
            decoder = PackedDecoder(self.base, self.base.packed, self.resident.mixer, [ids], 1)
            ours = decoder.all_logits().log_softmax(-1)
            logits = all_logits(self.base.model, torch.tensor([ids]))[0]
            exact = logits.log_softmax(-1)
        return {
            "largest_logit_difference": round(
                float((ours - exact - (ours - exact).mean(-1, True)).abs().max()), 3
            ),
            "greedy_agreement": round(float((ours.argmax(-1) == exact.argmax(-1)).float().mean()), 4),
            "divergence_nats": round(float((exact.exp() * (exact - ours)).sum(-1).mean()), 5),
        }


class LlamaCpp:
    """llama.cpp on one thread."""

    def __init__(self, gguf: Path, ours: Ours) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx, params.n_parallel, params.warmup = 1024, 1, True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self._server = xllamacpp.Server(params)
        self._long_prompt = ours.base.tokenizer.decode(ours.long_prompt)

    def _complete(self, prompt: str, tokens: int, cached: bool) -> dict[str, float]:
        request = {
            "prompt": prompt,
            "n_predict": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": cached,
        }
        return self._server.handle_completions(request)["timings"]  # type: ignore[no-any-return]

    def decode(self, fastest: Fastest, tokens: int) -> None:
        """Measures tokens after a prompt; CPU time is the difference of a long and a short answer."""
        start = time.process_time()
        self._complete(PROMPT, 2, True)
        middle = time.process_time()
        timings = self._complete(PROMPT, 2 + tokens, True)
        cpu = (time.process_time() - middle) - (middle - start)
        fastest.add(timings["predicted_per_token_ms"] / 1000, max(cpu, 0.0) / tokens or float("inf"))

    def prefill(self, fastest: Fastest) -> None:
        """Measures the long prompt."""
        start = time.process_time()
        timings = self._complete(self._long_prompt, 1, False)
        fastest.add(timings["prompt_ms"] / 1000, time.process_time() - start)


class TransformersPeft:
    """`generate` of transformers with both adapters active through peft, in fp32."""

    def __init__(self, folder: Path, prompt: list[int]) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        peft = get_peft_model(model, LoraConfig(**adapter_config()), adapter_name=ADAPTERS[0])
        peft.add_adapter(ADAPTERS[1], LoraConfig(**adapter_config()))
        peft.base_model.set_adapter(list(ADAPTERS))
        fill_adapters(peft)
        self._model, self._ids = peft, torch.tensor([prompt])

    @torch.inference_mode()
    def decode(self, fastest: Fastest, tokens: int) -> None:
        """Measures tokens by the difference of a long and a short answer."""
        both = []
        for count in (2, 2 + tokens):
            wall, cpu = time.perf_counter(), time.process_time()
            self._model.generate(
                input_ids=self._ids, max_new_tokens=count, min_new_tokens=count, do_sample=False
            )
            both.append((time.perf_counter() - wall, time.process_time() - cpu))
        fastest.add(both[1][0] - both[0][0], both[1][1] - both[0][1], tokens)


def adapter_config() -> dict[str, Any]:
    """LoRA on all layers of a Llama."""
    return {
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": list(families.LLAMA_LIKE),
        "task_type": "CAUSAL_LM",
    }


@torch.no_grad()
def fill_adapters(peft: Any) -> None:
    """Draws second factors of the size that training leaves; they start at zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in peft.named_parameters():
        if ".lora_B." in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)


def measure_decoder(folder: Path, gguf: Path, rounds: int = 12) -> dict[str, Any]:
    """Measures all sides in turn.

    Args:
        folder: the base as a folder. gguf: the same base for llama.cpp.
        rounds: how often each side is measured.

    Returns:
        Ratios by name as {"wall", "cpu"}, milliseconds of each side, and what the packed weights cost.
    """
    ours = Ours(folder)
    llama, peft = LlamaCpp(gguf, ours), TransformersPeft(folder, ours.prompt)
    names = ("llama", "base", "two", "eight", "own", "peft", "llama_prompt", "prompt", "own_prompt")
    sides = {name: Fastest() for name in names}
    llama.prefill(Fastest())
    for i in range(rounds):
        llama.decode(sides["llama"], 12)
        ours.decode(sides["base"], [{}], 12)
        ours.decode(sides["two"], TWO, 12)
        llama.decode(sides["llama"], 12)
        ours.decode(sides["eight"], list(EIGHT), 4)
        if i % 4 == 0:
            ours.decode(sides["own"], [{}], 4, packed=False)
            peft.decode(sides["peft"], 6)
            llama.prefill(sides["llama_prompt"])
            sides["prompt"].measure(ours.prefill)
            sides["own_prompt"].measure(lambda: ours.prefill(packed=False))
    pairs = {
        "decode_over_llamacpp": ("llama", "base", 1),
        "mix_over_base": ("base", "two", 1),
        "eight_mixes_over_llamacpp": ("llama", "eight", 8),
        "decode_over_transformers_peft": ("peft", "two", 1),
        "packed_over_own_precision": ("own", "base", 1),
        "first_token_over_llamacpp": ("prompt", "llama_prompt", 1),
    }
    return {
        **{
            name: {
                "wall": round(factor * sides[a].wall / sides[b].wall, 2),
                "cpu": round(factor * sides[a].cpu / sides[b].cpu, 2),
            }
            for name, (a, b, factor) in pairs.items()
        },
        "milliseconds": {
            name: {"wall": round(1000 * s.wall, 1), "cpu": round(1000 * s.cpu, 1)}
            for name, s in sides.items()
        },
        "int8_against_fp32": {
            "base": ours.compare_precisions([{}]),
            "two_adapters": ours.compare_precisions(list(TWO)),
        },
        "packed_bytes": ours.base.packed.memory_bytes,
    }
