"""How fast are mixes: in rank space, many in a batch, against peft, one after the other?

    OMP_NUM_THREADS=1 python -m benchmarks.mixing --quick             under a minute on an idle machine
    OMP_NUM_THREADS=1 python -m benchmarks.mixing                     with the 0.5B shape
    python -m benchmarks.mixing --only cuda --peak-gb-s 4800          on a GPU: 0.5B and 7B shapes in nf4

Every figure is a ratio within one process: the two sides take turns, and the median of the ratios of neighbours
counts, so that a busy machine disturbs both alike. Knows a clock and a table; `benchmarks.peers` knows the work.
With --json the last line is one JSON object of named figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import Peer, Random, build, load, mixture, mixture_with_adapters, weight_bytes
from core.model.generate import encode_prompt, generate, inference_mode_for
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling
from core.spec.presets import resolve

A, B = Random(2).names
FOUR: list[dict[str, float]] = [{}, {A: 1.0}, {B: 1.0}, {A: 0.7, B: 0.5}]
PROMPT = "Where is the red lamp, and who has seen it there?"
LABELS = {"none": "fp32", "nf4": "nf4"}
TARGETS = {
    "four_mixes_speedup_fp32": (">=", 2.5),
    "four_mixes_speedup_nf4": (">=", 3.5),
    "batch_over_bare_base_nf4": ("<=", 1.2),
    "growth_1_to_8_adapters": ("<=", 1.15),
    "mix_change_ms": ("<=", 1.0),
    "max_abs_diff_to_peft_fp32": ("<=", 1e-5),
    "experts_step_over_bare_base": ("<=", 1.5),
}


@dataclass
class Settings:
    """One invocation: how much, where, and what was found so far."""

    quick: bool
    folder: Path
    bases: list[str]
    repeats: int
    device: str = "cpu"
    peak: float = 0.0  # bytes a second
    clock: Callable[[], float] = time.perf_counter
    figures: dict[str, float] = field(default_factory=dict)

    def tokens(self, base: str) -> int:
        return 48 if base == "embedded" else 16 if self.quick or base != "30m" else 48

    def turns(self, base: str) -> int:
        return self.repeats if base == "embedded" else max(1, self.repeats // 2) if base == "30m" else 2

    def found(self, name: str, value: float, text: str = "") -> None:
        self.figures[name] = value
        print(f"  {name:44s} {value:10.4g}  {text}", flush=True)


def take_turns(
    jobs: Mapping[str, Callable[[], Any]], turns: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each job in each turn, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(turns + 1):
        for name, job in jobs.items():
            begin = clock()
            job()
            if turn:
                seconds[name].append(clock() - begin)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Median over turns of one job's time over another's."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def write(resident: Resident, ids: list[int], mixes: list[dict[str, float]], tokens: int) -> list[list[int]]:
    """Greedy token ids of all mixes, one batch of ours."""
    samplings = [Sampling(max_new_tokens=tokens)] * len(mixes)
    states: Any = []
    for states in generate(resident, [ids] * len(mixes), [Mix(weights=m) for m in mixes], samplings):
        pass
    return [w.ids for w in states]


def contest(
    bare: Mapping[str, Resident], ours: Resident, peer: Peer, ids: list[int], tokens: int
) -> dict[str, Callable[[], Any]]:
    """The same four answers by ours, by peft, and by bases without adapters."""
    return {
        "ours": lambda: write(ours, ids, FOUR, tokens),
        **{name: partial(write, base, ids, [{}] * 4, tokens) for name, base in bare.items()},
        "peft": lambda: [peer.write(ids, m, tokens) for m in FOUR],
    }


def four_mixes(s: Settings) -> None:
    """Four mixes of two adapters: one batch of ours, four answers of peft's in turn, and a batch of the bare base, with bitsandbytes' own layers and with ours."""
    for name in s.bases:
        source, tokens = build(name, s.folder), s.tokens(name)
        for quantization, label in LABELS.items():
            bare = {
                name: load(source, quantization, s.device, s.folder, plain=name == "plain")
                for name in ("plain", "bare")
            }
            ours = Random(2).hang(load(source, quantization, s.device, s.folder))
            peer = Peer(ours, source)
            ids = encode_prompt(ours, PROMPT, True, tokens)
            if quantization == "none":
                assert write(ours, ids, FOUR, tokens) == [peer.write(ids, m, tokens) for m in FOUR], (
                    f"{name}: not the same greedy tokens as peft"
                )
                difference(s, name, source, ours, peer, ids)
            seconds = take_turns(contest(bare, ours, peer, ids, tokens), s.turns(name), s.clock)
            ms = ", ".join(f"{job} {1000 * min(t):.0f}" for job, t in seconds.items())
            mark = "" if name == "embedded" else f"_{name}"
            s.found(
                f"four_mixes_speedup_{label}{mark}",
                ratio(seconds["peft"], seconds["ours"]),
                f"4 mixes x {tokens} tokens, least ms: {ms}",
            )
            s.found(
                f"batch_over_bare_base_{label}{mark}",
                ratio(seconds["ours"], seconds["plain"]),
                "the base as transformers and bitsandbytes have it",
            )
            s.found(
                f"batch_over_own_bare_base_{label}{mark}",
                ratio(seconds["ours"], seconds["bare"]),
                "the base with our 4-bit layers",
            )


def difference(s: Settings, name: str, source: str, ours: Resident, peer: Peer, ids: list[int]) -> None:
    """Largest distance of a logit to peft's own forward, over all rows and positions; and of both to it in 64 bits."""
    text = torch.tensor([ids], device=ours.base.device)
    with inference_mode_for(ours, FOUR):
        logits = ours.model(text.repeat(4, 1)).logits
    worst = max(float((logits[b] - peer.logits(text, m)).abs().max()) for b, m in enumerate(FOUR))
    before = s.figures.get("max_abs_diff_to_peft_fp32", 0.0)
    s.found(
        "max_abs_diff_to_peft_fp32",
        max(worst, before),
        f"{name}: {worst:.2g} where logits reach {float(logits.abs().max()):.1f}",
    )
    if name == "0.5b":  # in 64 bits it would take minutes
        return
    own = torch.stack([peer.logits(text, m) for m in FOUR])
    exact = Peer(ours, source)
    exact.model.double()
    true = torch.stack([exact.logits(text, m) for m in FOUR])
    s.found(
        f"max_abs_diff_to_fp64_{name}",
        float((logits - true).abs().max()),
        "ours against peft's forward in 64 bits",
    )
    s.found(
        f"max_abs_diff_to_fp64_{name}_peft",
        float((own - true).abs().max()),
        "peft's own in 32 bits against it",
    )


def growth(s: Settings) -> None:
    """One column, one adapter resident and active, then eight; beside it peft with as many active."""
    tokens, many = 24, Random(8, rank=8)
    for quantization, label in LABELS.items():
        one = Random(1, rank=8).hang(load("embedded", quantization, s.device, s.folder))
        eight = many.hang(load("embedded", quantization, s.device, s.folder))
        peer = Peer(eight, "embedded")
        ids = encode_prompt(one, PROMPT, True, tokens)
        all_on = dict.fromkeys(many.names, 0.3)
        first = dict.fromkeys(many.names[:1], 1.0)
        jobs = {
            "one": partial(write, one, ids, [first], tokens),
            "eight": partial(write, eight, ids, [all_on], tokens),
            "eight, one on": partial(write, eight, ids, [first], tokens),
            "peft one": partial(peer.write, ids, first, tokens),
            "peft eight": partial(peer.write, ids, all_on, tokens),
        }
        seconds = take_turns(jobs, s.repeats, s.clock)
        ms = ", ".join(f"{job} {1000 * min(t) / tokens:.1f}" for job, t in seconds.items())
        mark = "" if quantization == "nf4" else f"_{label}"
        s.found(
            f"growth_1_to_8_adapters{mark}",
            ratio(seconds["eight"], seconds["one"]),
            f"{label}, least ms a token: {ms}",
        )
        s.found(f"growth_1_to_8_adapters{mark}_peft", ratio(seconds["peft eight"], seconds["peft one"]))


def changing(s: Settings) -> None:
    """What a moved slider costs before the next token can be computed."""
    ours = Random(2).hang(load("embedded", "none", s.device, s.folder))
    peer = Peer(ours, "embedded")
    weights = [i / 100 for i in range(1, 101)]
    ids = encode_prompt(ours, PROMPT, True, 8)
    text = torch.tensor([ids[-1:]], device=ours.base.device)

    def median_ms(job: Callable[[float], Any], count: int, after: Callable[[], Any] = lambda: None) -> float:
        spent = []
        for weight in weights[:count]:
            begin = time.perf_counter()
            job(weight)
            spent.append(time.perf_counter() - begin)
            after()
        return 1000 * statistics.median(spent)

    def engage(weight: float) -> None:
        with torch.inference_mode(), ours.mixer.activate([{A: weight, B: 1.0}] * 4):
            pass

    def step(weight: float) -> None:
        with inference_mode_for(ours, [{A: weight, B: 1.0}]):
            ours.model(text)

    step(0.5)
    s.found(
        "mix_change_ms",
        median_ms(engage, 100),
        "our engaged(), four rows, with what every layer multiplies by",
    )
    same = median_ms(lambda _: step(0.5), 50)
    s.found(
        "mix_change_in_a_step_ms",
        median_ms(step, 50) - same,
        f"a step under a new mix less one under the same ({same:.1f} ms)",
    )
    s.found(
        "peft_set_adapter_ms",
        median_ms(lambda w: peer.model.base_model.set_adapter([A, B], inference_mode=True), 20),
    )
    s.found("peft_set_adapter_and_scales_ms", median_ms(lambda w: peer.choose({A: w, B: 1.0}), 20))
    for way, extra in (("linear", {}), ("cat", {}), ("svd", {"svd_rank": 16}), ("ties", {"density": 0.5})):

        def combine(weight: float, way: str = way, extra: dict[str, Any] = extra) -> None:
            peer.model.base_model.add_weighted_adapter(
                [A, B], [weight, 1.0], "sum", combination_type=way, **extra
            )

        s.found(
            f"peft_add_weighted_{way}_ms", median_ms(combine, 3, lambda: peer.model.delete_adapter("sum"))
        )


def first_token(s: Settings) -> None:
    """From asking to the first token of a column on the page: with nothing else to do, and while a run trains."""
    from core.data.samples import Samples
    from core.engine import Engine

    with (
        tempfile.TemporaryDirectory(dir=s.folder) as folder,
        Engine(folder, "embedded", "none", s.device) as engine,
    ):
        engine.bases.current(wait=True)
        data = engine.datasets.import_files(Samples().domain, "Station")

        def ask(mixes: list[Mix]) -> float:
            begin = time.perf_counter()
            stream = engine.chat.stream(PROMPT, mixes, Sampling(max_new_tokens=4))
            for frame in stream:
                if frame.columns[0].tokens:
                    break
            seconds = time.perf_counter() - begin
            stream.close()
            return 1000 * seconds

        ask([Mix(), Mix()])
        alone = statistics.median(ask([Mix(), Mix()]) for _ in range(5))
        run_id = engine.runs.start(
            resolve("domain", "embedded", {"name": "Station", "dataset": data.id, "replay_share": 0.0})
        )
        while not any(e["kind"] == "step" for e in engine.runs.events(run_id)[0]):
            time.sleep(0.05)
        training = statistics.median(
            ask([Mix(), Mix(weights={engine.runs.get(run_id).adapter: 1.0})]) for _ in range(5)
        )
        at = len([e for e in engine.runs.events(run_id)[0] if e["kind"] == "step"])
        engine.runs.stop(run_id)
        engine.runs.wait(run_id)
    s.found("first_token_ms", alone, "embedded base, fp32, two columns")
    s.found(
        "first_token_while_training_ms",
        training,
        f"the same, one column of the adapter in training; the run was at step {at}",
    )


def experts(s: Settings) -> None:
    """One token of a mixture of experts (MiniMax-M2's kind, random) with two adapters on the experts, next to the bare base and to peft."""
    bare, (model, mixer) = mixture(), mixture_with_adapters((A, B))
    text = torch.tensor([[5]])

    tokens = 20  # a turn; one alone is over before a clock can tell

    def forward(model: Any) -> Callable[[], Any]:
        return lambda: [model(text, use_cache=False) for _ in range(tokens)]

    def ours() -> None:
        with mixer.activate([{A: 0.7, B: 0.5}]):
            forward(model)()

    with torch.inference_mode():
        spent = take_turns({"bare": forward(bare), "ours": ours, "peft": forward(model)}, s.repeats, s.clock)
    told = ", ".join(f"{name} {1000 * min(seconds) / tokens:.1f}" for name, seconds in spent.items())
    s.found(
        "experts_step_over_bare_base",
        ratio(spent["ours"], spent["bare"]),
        f"two adapters of rank 8 on 32 experts in 4 layers, least ms: {told}",
    )
    s.found("experts_step_over_bare_base_peft", ratio(spent["peft"], spent["bare"]))


def cuda(s: Settings) -> None:
    """Qwen2.5's shapes in nf4 on a GPU: tokens per second, and how much of the memory bandwidth reading the weights takes."""
    if not torch.cuda.is_available():
        print("  no GPU here: not measured")
        return
    device = torch.device("cuda")
    for name in ("0.5b", "7b"):
        source, tokens = build(name, s.folder, 151_936), 64
        bare = load(source, "nf4", str(device), s.folder)
        ours = Random(2).hang(load(source, "nf4", str(device), s.folder))
        peer = Peer(ours, source)
        ids = encode_prompt(ours, PROMPT, True, tokens)
        seconds = take_turns(contest({"bare": bare}, ours, peer, ids, tokens), s.repeats)
        read = weight_bytes(ours.model)
        for job, spent in seconds.items():
            steps = tokens * (4 if job == "peft" else 1)
            rate = read * steps / min(spent)
            s.found(
                f"cuda_{name}_{job}_tokens_per_s",
                4 * tokens / min(spent),
                f"{1000 * min(spent) / steps:.2f} ms a step",
            )
            s.found(f"cuda_{name}_{job}_gb_per_s", rate / 1e9)
            if s.peak:
                s.found(f"cuda_{name}_{job}_share_of_peak", rate / s.peak, f"of {s.peak / 1e9:.0f} GB/s")
        s.found(f"cuda_{name}_four_mixes_speedup", ratio(seconds["peft"], seconds["ours"]))
        s.found(f"cuda_{name}_batch_over_bare_base", ratio(seconds["ours"], seconds["bare"]))
        s.found(
            f"cuda_{name}_memory_gb", torch.cuda.max_memory_allocated() / 1e9, "all three models together"
        )
        del bare, ours, peer
        torch.cuda.empty_cache()


# A case is a function of Settings.
CASES: dict[str, Callable[[Settings], None]] = {
    "four_mixes": four_mixes,
    "growth": growth,
    "changing": changing,
    "first_token": first_token,
    "experts": experts,
    "cuda": cuda,
}


def main() -> int:
    """Runs the chosen cases and holds the figures against the targets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few turns, no 0.5B shape")
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), default=list(CASES), help="some cases")
    parser.add_argument(
        "--bases", nargs="+", choices=("embedded", "30m", "0.5b"), default=None, help="bases of four_mixes"
    )
    parser.add_argument(
        "--repeats", type=int, default=0, help="turns on the embedded base (3 with --quick, 7 without)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="torch's threads; set OMP_NUM_THREADS too, bitsandbytes reads it",
    )
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where the cases other than cuda run"
    )
    parser.add_argument(
        "--peak-gb-s",
        type=float,
        default=0.0,
        help="memory bandwidth of the GPU, for the share of it that is used",
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count this process's CPU time in four_mixes and growth: for a machine with other work on it",
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # peft's and bitsandbytes' remarks
    with tempfile.TemporaryDirectory() as folder:
        bases = args.bases or (["embedded", "30m"] if args.quick else ["embedded", "30m", "0.5b"])
        settings = Settings(
            args.quick,
            Path(folder),
            bases,
            args.repeats or (3 if args.quick else 7),
            args.device,
            args.peak_gb_s * 1e9,
        )
        settings.clock = time.process_time if args.cpu_time else time.perf_counter
        for name in args.only:
            begin = time.perf_counter()
            print(f"{name}: {(CASES[name].__doc__ or '').splitlines()[0]}", flush=True)
            CASES[name](settings)
            print(f"  ({time.perf_counter() - begin:.0f} s)", flush=True)
    for name, (sign, limit) in TARGETS.items():
        if name in settings.figures:
            value = settings.figures[name]
            met = value >= limit if sign == ">=" else value <= limit
            print(f"{'met   ' if met else 'MISSED'} {name} {value:.4g} (target {sign} {limit:g})")
    if args.json:
        print(json.dumps(settings.figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
