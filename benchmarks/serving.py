"""Many callers, each with a mix of its own: throughput and waiting time, against llama.cpp's server.

    python -m benchmarks.serving [--base FOLDER --gguf FILE] [--quick] [--json]

Requests go through `engine.serving`, as those of the API do. Without --base, the embedded base answers and
llama.cpp is left out. One thread for the model on each side. `eight_callers_over_one_by_one` and
`eight_callers_over_llamacpp` say how many times as fast ours is; `first_token_under_load_over_alone` is the
95th percentile under Poisson arrivals at half the throughput of eight callers, over the median of a lone
caller, and less is better. llama.cpp's server holds the same adapters as GGUF files, each request sets its
own scales, and it decodes requests of different scales one after the other.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

CALLERS = 8
TOKENS = 48  # of every answer
PROMPT_TOKENS = 32
RANK = 16
ADAPTERS = ("first", "second")
WEIGHTS = [(i / CALLERS, 1 - i / (2 * CALLERS)) for i in range(CALLERS)]
WORDS = "The history of the lighthouse begins in 1842, when the town council voted to build one. " * 8


class Ours:
    """An engine whose base holds two random adapters on all linear layers."""

    def __init__(self, base: str) -> None:
        from core.engine import Engine
        from core.spec.mix import Mix, Sampling

        self.engine = Engine(tempfile.mkdtemp(), base, quantization="none", device="cpu", answers="fast")
        self.engine.bases.current(wait=True)
        self.engine.worker.call(self._add_adapters)
        self.mixes = [Mix(weights=dict(zip(ADAPTERS, pair, strict=True))) for pair in WEIGHTS]
        self.sampling = Sampling(max_new_tokens=TOKENS)
        self.prompt = self.engine.worker.call(self._make_prompt)

    def _add_adapters(self) -> None:
        import torch

        from benchmarks.real_base_decoding import fill_adapters
        from core.model import continuous_batch
        from core.model.families import LLAMA_LIKE

        resident = self.engine.resident_base.get()
        append = continuous_batch.append_token  # every answer has all its tokens
        continuous_batch.append_token = lambda state, token, _, tokenizer: append(
            state, token, set(), tokenizer
        )
        config = {
            "r": RANK,
            "lora_alpha": 2 * RANK,
            "target_modules": list(LLAMA_LIKE),
            "task_type": "CAUSAL_LM",
        }
        for name in ADAPTERS:
            resident.add_adapter(name, config)
            resident.digests[name] = "random"
        with torch.no_grad():
            fill_adapters(resident.peft)
        resident.update_layout()

    def _make_prompt(self) -> str:
        tokenizer = self.engine.resident_base.get().base.tokenizer
        return str(tokenizer.decode(tokenizer(WORDS).input_ids[:PROMPT_TOKENS]))

    def submit(self, caller: int) -> Any:
        """Sends the request of a caller."""
        from core.engine.serving import Request

        return self.engine.serving.submit(
            Request(self.prompt, self.mixes[caller % CALLERS], self.sampling, chat=False)
        )

    def answer_one_by_one(self) -> float:
        """Seconds for the requests of all callers, one after the other."""
        begin = time.perf_counter()
        for caller in range(CALLERS):
            check(self.submit(caller).last())
        return time.perf_counter() - begin

    def answer_together(self) -> float:
        """Seconds for the requests of all callers at once."""
        begin = time.perf_counter()
        for completion in [self.submit(caller) for caller in range(CALLERS)]:
            check(completion.last())
        return time.perf_counter() - begin

    def arrive(self, requests: int, seconds: float, seed: int) -> list[float]:
        """Sends requests at random times, `seconds` apart on average; their first-token times, in seconds."""
        rng = random.Random(seed)
        with ThreadPoolExecutor(requests) as pool:
            waiting = []
            for caller in range(requests):
                waiting.append(pool.submit(self.submit(caller).last))
                time.sleep(rng.expovariate(1 / seconds))
            return [w.result().first_token_seconds for w in waiting]

    def write_adapters(self, folder: Path) -> list[Path]:
        """The adapters as GGUF files."""
        return self.engine.worker.call(lambda: self._write_adapters(folder))

    def _write_adapters(self, folder: Path) -> list[Path]:
        from core.gguf.adapter_writer import write_adapter

        resident, paths = self.engine.resident_base.get(), []
        for name in ADAPTERS:
            factors = {}
            for path, module in resident.peft.base_model.model.named_modules():
                if hasattr(module, "lora_A") and name in module.lora_A:
                    a, b = module.lora_A[name].weight, module.lora_B[name].weight
                    factors[path] = (a.detach().float(), 2 * b.detach().float())  # alpha / r is 2
            paths.append(folder / f"{name}.gguf")
            write_adapter(factors, resident.base.model.config.to_dict(), paths[-1], name)
        return paths


class LlamaCpp:
    """llama.cpp's server with one slot for each caller."""

    def __init__(self, gguf: Path, adapters: list[Path], prompt: str) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(gguf)
        settings.n_ctx, settings.n_parallel, settings.warmup = 256 * CALLERS, CALLERS, True
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        loaded = []
        for path in adapters:
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = str(path), 1.0
            loaded.append(adapter)
        settings.lora_adapters = loaded
        self._server, self._prompt = xllamacpp.Server(settings), prompt

    def _complete(self, caller: int) -> None:
        request = {
            "prompt": self._prompt,
            "n_predict": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "lora": [{"id": i, "scale": scale} for i, scale in enumerate(WEIGHTS[caller])],
        }
        timings = self._server.handle_completions(request)["timings"]
        assert timings["predicted_n"] == TOKENS, timings

    def answer_together(self) -> float:
        """Seconds for the requests of all callers at once."""
        begin = time.perf_counter()
        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(self._complete, range(CALLERS)))
        return time.perf_counter() - begin


def check(progress: Any) -> None:
    """Every answer has all its tokens."""
    assert progress.columns[0].tokens == TOKENS, progress


def measure(base: str, gguf: Path | None, quick: bool) -> dict[str, Any]:
    """Measures all sides in turn, and returns the figures of one base."""
    ours = Ours(base)
    ours.answer_one_by_one()
    ours.answer_together()
    rounds, arrivals = (2, 12) if quick else (5, 60)
    llama = None
    if gguf is not None:
        llama = LlamaCpp(gguf, ours.write_adapters(Path(tempfile.mkdtemp())), ours.prompt)
        llama.answer_together()
    alone, together, theirs = [], [], []
    for _ in range(rounds):
        alone.append(ours.answer_one_by_one())
        together.append(ours.answer_together())
        if llama is not None:
            theirs.append(llama.answer_together())
    first = [ours.submit(i).last().first_token_seconds for i in range(rounds * 4)]
    spacing = 2 * min(together) / CALLERS
    loaded = sorted(ours.arrive(arrivals, spacing, seed=0))
    lone, p95 = statistics.median(first), loaded[int(0.95 * (len(loaded) - 1))]
    ours.engine.close()
    figures = {
        "eight_callers_over_one_by_one": round(min(alone) / min(together), 2),
        "first_token_under_load_over_alone": round(p95 / lone, 2),
        "tokens_per_second": round(CALLERS * TOKENS / min(together), 1),
        "first_token_alone_ms": round(1000 * lone, 1),
        "first_token_under_load_p95_ms": round(1000 * p95, 1),
        "arrivals_per_second": round(1 / spacing, 2),
    }
    if theirs:
        figures["eight_callers_over_llamacpp"] = round(min(theirs) / min(together), 2)
    return figures


def main() -> None:
    """Prints the figures; with `--json`, the last line is one object."""
    parser = argparse.ArgumentParser(description="Many callers, each with a mix of its own.")
    parser.add_argument(
        "--base", default="", help="A real base as a folder; the embedded one is always used."
    )
    parser.add_argument("--gguf", type=Path, help="The same base as a GGUF file, for llama.cpp.")
    parser.add_argument("--quick", action="store_true", help="Fewer rounds.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object as the last line.")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    import torch

    torch.set_num_threads(1)
    figures: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 1)}
    figures["embedded"] = measure("embedded", None, args.quick)
    if args.base:
        figures["real"] = measure(args.base, args.gguf, args.quick)
    figures["load_after"] = round(os.getloadavg()[0], 1)
    if args.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
