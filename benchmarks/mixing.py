"""Speed of several mixes in one batch (rank space), compared with peft, one mix after the other.

    OMP_NUM_THREADS=1 python -m benchmarks.mixing --quick             less than a minute on an idle machine
    OMP_NUM_THREADS=1 python -m benchmarks.mixing                     with the 0.5B shape
    python -m benchmarks.mixing --only cuda --peak-gb-s 4800          on a GPU: 0.5B and 7B shapes in nf4

Speeds are ratios within one process: both sides run in every turn, and the median of the ratios over the
turns is reported, so that other load on the machine affects both sides alike. The work itself is in
`benchmarks.peers`. With --json the last line is one JSON object of named figures.
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

from benchmarks.peers import (
    Peer,
    RandomAdapters,
    build,
    build_moe,
    build_moe_with_adapters,
    load,
    weight_bytes,
)
from core.model.generate import encode_prompt, generate, inference_mode_for
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling
from core.spec.presets import resolve
from core.store.events import StepEvent, of_kind

A, B = RandomAdapters(2).names
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
    """The options of one invocation, and the figures measured so far."""

    quick: bool
    folder: Path
    bases: list[str]
    repeats: int
    device: str = "cpu"
    peak: float = 0.0  # bytes per second
    clock: Callable[[], float] = time.perf_counter
    figures: dict[str, float] = field(default_factory=dict)

    def tokens(self, base: str) -> int:
        """Tokens per answer."""
        if base == "embedded":
            return 48
        return 16 if self.quick or base != "30m" else 48

    def turns(self, base: str) -> int:
        """Timed turns."""
        if base == "embedded":
            return self.repeats
        return max(1, self.repeats // 2) if base == "30m" else 2

    def report(self, name: str, value: float, text: str = "") -> None:
        """Stores and prints a figure."""
        self.figures[name] = value
        print(f"  {name:44s} {value:10.4g}  {text}", flush=True)


def take_turns(
    jobs: Mapping[str, Callable[[], Any]], turns: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each job in each turn, after one warm-up turn."""
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


def generate_ids(
    resident: Resident, ids: list[int], mixes: list[dict[str, float]], tokens: int
) -> list[list[int]]:
    """Greedy token ids of all mixes, generated in one batch."""
    samplings = [Sampling(max_new_tokens=tokens)] * len(mixes)
    states: Any = []
    for states in generate(resident, [ids] * len(mixes), [Mix(weights=m) for m in mixes], samplings):
        pass
    return [state.ids for state in states]


def contest(
    bare: Mapping[str, Resident], ours: Resident, peer: Peer, ids: list[int], tokens: int
) -> dict[str, Callable[[], Any]]:
    """The same four answers by our batch, by peft, and by bases without adapters."""
    return {
        "ours": lambda: generate_ids(ours, ids, FOUR, tokens),
        **{name: partial(generate_ids, base, ids, [{}] * 4, tokens) for name, base in bare.items()},
        "peft": lambda: [peer.generate_ids(ids, m, tokens) for m in FOUR],
    }


def four_mixes(s: Settings) -> None:
    """Four mixes of two adapters: one batch of ours, four generations of peft, and a batch of the bare base.

    The bare base runs with bitsandbytes' 4-bit layers ("plain") and with ours ("bare").
    """
    for name in s.bases:
        source, tokens = build(name, s.folder), s.tokens(name)
        for quantization, label in LABELS.items():
            bare = {
                name: load(source, quantization, s.device, s.folder, plain=name == "plain")
                for name in ("plain", "bare")
            }
            ours = RandomAdapters(2).add_to(load(source, quantization, s.device, s.folder))
            peer = Peer(ours, source)
            ids = encode_prompt(ours, PROMPT, True, tokens)
            if quantization == "none":
                expected = [peer.generate_ids(ids, m, tokens) for m in FOUR]
                assert generate_ids(ours, ids, FOUR, tokens) == expected, f"{name}: other tokens than peft"
                difference(s, name, source, ours, peer, ids)
            seconds = take_turns(contest(bare, ours, peer, ids, tokens), s.turns(name), s.clock)
            ms = ", ".join(f"{job} {1000 * min(t):.0f}" for job, t in seconds.items())
            mark = "" if name == "embedded" else f"_{name}"
            s.report(
                f"four_mixes_speedup_{label}{mark}",
                ratio(seconds["peft"], seconds["ours"]),
                f"4 mixes x {tokens} tokens, minimum ms: {ms}",
            )
            s.report(
                f"batch_over_bare_base_{label}{mark}",
                ratio(seconds["ours"], seconds["plain"]),
                "the base with the 4-bit layers of bitsandbytes",
            )
            s.report(
                f"batch_over_own_bare_base_{label}{mark}",
                ratio(seconds["ours"], seconds["bare"]),
                "the base with our 4-bit layers",
            )


def difference(s: Settings, name: str, source: str, ours: Resident, peer: Peer, ids: list[int]) -> None:
    """Largest difference of a logit from peft's forward, and of both from peft's forward in fp64."""
    text = torch.tensor([ids], device=ours.base.device)
    with inference_mode_for(ours, FOUR):
        logits = ours.model(text.repeat(4, 1)).logits
    worst = max(float((logits[b] - peer.logits(text, m)).abs().max()) for b, m in enumerate(FOUR))
    before = s.figures.get("max_abs_diff_to_peft_fp32", 0.0)
    s.report(
        "max_abs_diff_to_peft_fp32",
        max(worst, before),
        f"{name}: {worst:.2g} where logits reach {float(logits.abs().max()):.1f}",
    )
    if name == "0.5b":  # fp64 would take minutes
        return
    own = torch.stack([peer.logits(text, m) for m in FOUR])
    exact = Peer(ours, source)
    exact.model.double()
    true = torch.stack([exact.logits(text, m) for m in FOUR])
    s.report(
        f"max_abs_diff_to_fp64_{name}",
        float((logits - true).abs().max()),
        "ours against peft's forward in fp64",
    )
    s.report(
        f"max_abs_diff_to_fp64_{name}_peft",
        float((own - true).abs().max()),
        "peft in fp32 against peft in fp64",
    )


def growth(s: Settings) -> None:
    """One column with one resident and active adapter, then with eight; the same for peft."""
    tokens, many = 24, RandomAdapters(8, rank=8)
    for quantization, label in LABELS.items():
        one = RandomAdapters(1, rank=8).add_to(load("embedded", quantization, s.device, s.folder))
        eight = many.add_to(load("embedded", quantization, s.device, s.folder))
        peer = Peer(eight, "embedded")
        ids = encode_prompt(one, PROMPT, True, tokens)
        all_active = dict.fromkeys(many.names, 0.3)
        first = dict.fromkeys(many.names[:1], 1.0)
        jobs = {
            "one": partial(generate_ids, one, ids, [first], tokens),
            "eight": partial(generate_ids, eight, ids, [all_active], tokens),
            "eight, one active": partial(generate_ids, eight, ids, [first], tokens),
            "peft one": partial(peer.generate_ids, ids, first, tokens),
            "peft eight": partial(peer.generate_ids, ids, all_active, tokens),
        }
        seconds = take_turns(jobs, s.repeats, s.clock)
        ms = ", ".join(f"{job} {1000 * min(t) / tokens:.1f}" for job, t in seconds.items())
        mark = "" if quantization == "nf4" else f"_{label}"
        s.report(
            f"growth_1_to_8_adapters{mark}",
            ratio(seconds["eight"], seconds["one"]),
            f"{label}, minimum ms per token: {ms}",
        )
        s.report(f"growth_1_to_8_adapters{mark}_peft", ratio(seconds["peft eight"], seconds["peft one"]))


def mix_change(s: Settings) -> None:
    """Cost of a changed mix before the next token can be computed."""
    ours = RandomAdapters(2).add_to(load("embedded", "none", s.device, s.folder))
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

    def activate(weight: float) -> None:
        with torch.inference_mode(), ours.mixer.activate([{A: weight, B: 1.0}] * 4):
            pass

    def step(weight: float) -> None:
        with inference_mode_for(ours, [{A: weight, B: 1.0}]):
            ours.model(text)

    step(0.5)
    s.report(
        "mix_change_ms",
        median_ms(activate, 100),
        "activate() with four rows, including the factors of every layer",
    )
    same = median_ms(lambda _: step(0.5), 50)
    s.report(
        "mix_change_in_a_step_ms",
        median_ms(step, 50) - same,
        f"a step with a new mix minus a step with the same mix ({same:.1f} ms)",
    )
    s.report(
        "peft_set_adapter_ms",
        median_ms(lambda w: peer.model.base_model.set_adapter([A, B], inference_mode=True), 20),
    )
    s.report("peft_set_adapter_and_scales_ms", median_ms(lambda w: peer.set_mix({A: w, B: 1.0}), 20))
    for method, extra in (("linear", {}), ("cat", {}), ("svd", {"svd_rank": 16}), ("ties", {"density": 0.5})):

        def combine(weight: float, method: str = method, extra: dict[str, Any] = extra) -> None:
            peer.model.base_model.add_weighted_adapter(
                [A, B], [weight, 1.0], "sum", combination_type=method, **extra
            )

        s.report(
            f"peft_add_weighted_{method}_ms", median_ms(combine, 3, lambda: peer.model.delete_adapter("sum"))
        )


def first_token(s: Settings) -> None:
    """From the request to the first token of a column: on an idle engine, and while a run trains."""
    from core.data.samples import Samples
    from core.engine import Engine

    with (
        tempfile.TemporaryDirectory(dir=s.folder) as folder,
        Engine(folder, "embedded", "none", s.device) as engine,
    ):
        engine.bases.current(wait=True)
        data = engine.datasets.import_files(Samples().domain, "Station")

        def time_first_token(mixes: list[Mix]) -> float:
            begin = time.perf_counter()
            stream = engine.chat.stream(PROMPT, mixes, Sampling(max_new_tokens=4))
            for frame in stream:
                if frame.columns[0].tokens:
                    break
            seconds = time.perf_counter() - begin
            stream.close()
            return 1000 * seconds

        time_first_token([Mix(), Mix()])
        alone = statistics.median(time_first_token([Mix(), Mix()]) for _ in range(5))
        run_id = engine.runs.start(
            resolve("domain", "embedded", {"name": "Station", "dataset": data.id, "replay_share": 0.0})
        )
        while not of_kind(engine.runs.events(run_id)[0], StepEvent):
            time.sleep(0.05)
        training = statistics.median(
            time_first_token([Mix(), Mix(weights={engine.runs.get(run_id).adapter: 1.0})]) for _ in range(5)
        )
        step = len(of_kind(engine.runs.events(run_id)[0], StepEvent))
        engine.runs.stop(run_id)
        engine.runs.wait(run_id)
    s.report("first_token_ms", alone, "embedded base, fp32, two columns")
    s.report(
        "first_token_while_training_ms",
        training,
        f"the same, one column of the adapter in training; the run was at step {step}",
    )


def experts(s: Settings) -> None:
    """One token of a random MiniMax-M2 mixture of experts, with two adapters on the experts.

    Compared with the bare base and with peft.
    """
    bare, (model, mixer) = build_moe(), build_moe_with_adapters((A, B))
    text = torch.tensor([[5]])

    tokens = 20  # per turn: a single token is too short to time

    def forward(model: Any) -> Callable[[], Any]:
        return lambda: [model(text, use_cache=False) for _ in range(tokens)]

    def ours() -> None:
        with mixer.activate([{A: 0.7, B: 0.5}]):
            forward(model)()

    with torch.inference_mode():
        spent = take_turns({"bare": forward(bare), "ours": ours, "peft": forward(model)}, s.repeats, s.clock)
    times = ", ".join(f"{name} {1000 * min(seconds) / tokens:.1f}" for name, seconds in spent.items())
    s.report(
        "experts_step_over_bare_base",
        ratio(spent["ours"], spent["bare"]),
        f"two adapters of rank 8 on 32 experts in 4 layers, minimum ms: {times}",
    )
    s.report("experts_step_over_bare_base_peft", ratio(spent["peft"], spent["bare"]))


def cuda(s: Settings) -> None:
    """Shapes of Qwen2.5 in nf4 on a GPU: tokens per second, and memory bandwidth used for the weights."""
    if not torch.cuda.is_available():
        print("  no GPU: not measured")
        return
    device = torch.device("cuda")
    for name in ("0.5b", "7b"):
        source, tokens = build(name, s.folder, 151_936), 64
        bare = load(source, "nf4", str(device), s.folder)
        ours = RandomAdapters(2).add_to(load(source, "nf4", str(device), s.folder))
        peer = Peer(ours, source)
        ids = encode_prompt(ours, PROMPT, True, tokens)
        seconds = take_turns(contest({"bare": bare}, ours, peer, ids, tokens), s.repeats)
        read = weight_bytes(ours.model)
        for job, spent in seconds.items():
            steps = tokens * (4 if job == "peft" else 1)
            rate = read * steps / min(spent)
            s.report(
                f"cuda_{name}_{job}_tokens_per_s",
                4 * tokens / min(spent),
                f"{1000 * min(spent) / steps:.2f} ms per step",
            )
            s.report(f"cuda_{name}_{job}_gb_per_s", rate / 1e9)
            if s.peak:
                s.report(f"cuda_{name}_{job}_share_of_peak", rate / s.peak, f"of {s.peak / 1e9:.0f} GB/s")
        s.report(f"cuda_{name}_four_mixes_speedup", ratio(seconds["peft"], seconds["ours"]))
        s.report(f"cuda_{name}_batch_over_bare_base", ratio(seconds["ours"], seconds["bare"]))
        s.report(f"cuda_{name}_memory_gb", torch.cuda.max_memory_allocated() / 1e9, "all models together")
        del bare, ours, peer
        torch.cuda.empty_cache()


CASES: dict[str, Callable[[Settings], None]] = {
    "four_mixes": four_mixes,
    "growth": growth,
    "changing": mix_change,
    "first_token": first_token,
    "experts": experts,
    "cuda": cuda,
}


def main() -> int:
    """Runs the chosen cases and compares the figures with the targets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer turns, without the 0.5B shape")
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), default=list(CASES), help="cases to run")
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
        help="threads of torch; set OMP_NUM_THREADS too, which bitsandbytes reads",
    )
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="device of all cases but cuda"
    )
    parser.add_argument(
        "--peak-gb-s",
        type=float,
        default=0.0,
        help="memory bandwidth of the GPU in GB/s, to report the share that is used",
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="measure CPU time in four_mixes and growth, for a machine under other load",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # hides notes of peft and bitsandbytes
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
