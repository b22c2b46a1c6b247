"""Does a domain on Auto keep the answers about the domain, and give back the general ones?

    python -m benchmarks.gate --quick                 the shipped domain, one training seed
    python -m benchmarks.gate --domains 0 1 2 3       the shipped domain (0) and three fresh ones, three seeds

Trains the demo's adapters with the embedded preset and calibrates the gate of the domain as the studio does
at the end of a run: from its validation documents, replayed general text and the data of other adapters,
without a question. Reports exact match on held-out questions about the domain and on general ones, and their
harmonic mean, for the plain sum and for the same mix with the domain on Auto; a hostile set of questions; two
domains on Auto at once; and what a gate costs. `--workspaces` keeps what was trained.

With --json the last line is one JSON object of named figures.
"""

import argparse
import contextlib
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from assets.samples import write_sample
from core.cli import demo
from core.data.samples import Samples
from core.engine import Engine
from core.engine.calibration import Calibrated
from core.evaluate.measure import EvaluationData
from core.spec.mix import Mix, Sampling

DOMAIN, TASK, APART = "Demo domain", "Demo task", "Demo task (apart)"
LOST_POINTS = 3.0  # of held-out exact match that a gate may cost on average
HARMONIC = 0.80
STORIES = (
    "Tell me a story about a little boat.",
    "Who is a good friend?",
    "Please write down what happened today.",
    "Say something nice about the weather.",
)
COST_TOKENS, COST_ROUNDS = 48, 7

Say = Callable[[str], None]


def train_workspace(root: Path, domain_seed: int, seed: int, say: Say) -> None:
    """Trains the demo's three adapters into a workspace, unless that was done before."""
    if (root / "done").exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    write_sample(root / "sample", domain_seed)
    with Engine(root / "ws", base="embedded", quantization="none") as engine:
        for moment in demo.run_demo(engine, Samples(root / "sample"), seed=seed):
            if moment.text.startswith("Answering"):  # everything is trained
                break
        engine.calibration.wait_for_all()
    (root / "done").write_text("trained\n", encoding="utf-8")
    say(f"domain {domain_seed} seed {seed}: trained")


def find_adapters(engine: Engine) -> dict[str, str]:
    """Name -> id."""
    return {a.name: a.id for a in engine.library.adapters()}


def calibrate(engine: Engine, adapter_id: str, **options: Any) -> Calibrated:
    """Calibrates a gate through the engine."""
    return engine.calibration.start(adapter_id, **options).last()


def questions_of(samples: Samples) -> dict[str, list[dict[str, Any]]]:
    """The held-out, the general and the hostile questions."""
    own, general = samples.questions(), samples.general_questions()
    return {
        "": own,
        "general": general,
        "named": prepend(general, own, "domain"),
        "general_words": prepend(own, general, "general"),
    }


def prepend(rows: list[dict[str, Any]], others: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """Questions after a sentence that mentions a thing of another kind; the answers stay."""
    generator = random.Random(what)
    changed = []
    for row in rows:
        thing = name_thing(generator.choice(others))
        question, answer = (m["content"] for m in row["messages"][:2])
        messages = [
            {"role": "user", "content": f"I saw the {thing} today. {question}"},
            {"role": "assistant", "content": answer},
        ]
        changed.append({"messages": messages})
    return changed


def name_thing(row: dict[str, Any]) -> str:
    """What a question is about: the two words after "The" in its answer."""
    return " ".join(row["messages"][1]["content"].split()[1:3])


def measure(engine: Engine, mixes: list[Mix], samples: Samples, dataset: str) -> list[dict[str, Any]]:
    """Figures of every mix on all sets of questions."""
    data = EvaluationData(questions=questions_of(samples))
    stream = engine.evaluation.measure_data(mixes, lambda: data, dataset, "Gates", "test")
    progress = stream.last()
    return list(engine.evaluation.report(str(progress.report)).rows)


def run_demo_workspace(workspace: Path, base: str, say: Say) -> dict[str, float]:
    """The figures of the workspace of a demo on another base (`python3 launch.py demo --workspace ...`)."""
    samples = Samples()
    figures: dict[str, float] = {}
    with Engine(workspace, base=base, quantization="none") as engine:
        samples = samples.general_for(engine.bases.current(wait=True).name)
        ids = find_adapters(engine)
        made = calibrate(engine, ids[DOMAIN])
        weights = {ids[DOMAIN]: 1.0, ids[TASK]: 1.0}
        mixes = [
            Mix(name="plain", weights=weights),
            Mix(name="auto", weights=weights, auto={ids[DOMAIN]: "hard"}),
        ]
        data = EvaluationData(questions={"": Samples().questions(), "general": samples.general_questions()})
        stream = engine.evaluation.measure_data(
            mixes, lambda: data, engine.datasets.list()[0].id, "Gates", "test"
        )
        progress = stream.last()
        for row in engine.evaluation.report(str(progress.report)).rows:
            figures[f"heldout_{row['name']}"] = row["exact_match"]
            figures[f"general_{row['name']}"] = row["general_exact_match"]
            figures[f"harmonic_{row['name']}"] = harmonic(row)
        figures["area"] = made.calibration.area
    for key, value in figures.items():
        say(f"{base}: {key} {value:.3f}")
    return {f"real_{k}": v for k, v in figures.items()}


def harmonic(row: dict[str, Any]) -> float:
    """The harmonic mean of held-out and general exact match."""
    both = row["exact_match"], row["general_exact_match"]
    return 2 * both[0] * both[1] / sum(both) if sum(both) else 0.0


def open_rate(engine: Engine, mix: Mix, prompts: list[str]) -> float:
    """The share of prompts for which the gate of the mix is on."""
    opened = 0
    for prompt in prompts:
        frame = engine.chat.stream(prompt, [mix], Sampling(max_new_tokens=1), exact=True).last()
        opened += bool(set(mix.auto) & set(frame.columns[0].stamp["weights"]))
    return opened / len(prompts)


def run_pair(root: Path, domain_seed: int, seed: int, say: Say) -> dict[str, float]:
    """The figures of one domain and training seed."""
    figures: dict[str, float] = {}
    train_workspace(root, domain_seed, seed, say)
    samples = Samples(root / "sample")
    with open_copy(root) as engine:
        ids = find_adapters(engine)
        domain, task, apart = ids[DOMAIN], ids[TASK], ids[APART]
        made = calibrate(engine, domain)
        questions = [m["messages"][0]["content"] for m in samples.questions()]
        general = [m["messages"][0]["content"] for m in samples.general_questions()]
        auto = {domain: "hard"}
        mixes = [
            Mix(name="task", weights={task: 1.0}),
            Mix(name="plain", weights={domain: 1.0, task: 1.0}),
            Mix(name="auto", weights={domain: 1.0, task: 1.0}, auto=auto),
            Mix(name="soft", weights={domain: 1.0, task: 1.0}, auto={domain: "soft"}),
            Mix(name="summed", weights={domain: 1.0, apart: 1.0}),
            Mix(name="summed_auto", weights={domain: 1.0, apart: 1.0}, auto=auto),
        ]
        dataset = engine.datasets.list()[0].id
        for row in measure(engine, mixes, samples, dataset):
            name = row["name"]
            figures[f"harmonic_{name}"] = harmonic(row)
            for prefix in ("", "general_", "named_", "general_words_"):
                figures[f"{prefix or 'heldout_'}{name}"] = row[f"{prefix}exact_match"]
        figures["area"] = made.calibration.area
        figures["threshold"] = made.calibration.threshold
        figures["on_heldout"] = open_rate(engine, mixes[2], questions)
        figures["on_general"] = open_rate(engine, mixes[2], general)
        figures["on_neither"] = open_rate(engine, mixes[2], list(STORIES))
        few = calibrate(engine, domain, texts=tuple(questions[::6]), questions=True)
        figures["threshold_from_questions"] = few.calibration.threshold
        calibrate(engine, domain)
    for key, value in figures.items():
        say(f"domain {domain_seed} seed {seed}: {key} {value:.3f}")
    return figures


@contextlib.contextmanager
def open_copy(root: Path) -> Iterator[Engine]:
    """An engine on a copy of a workspace, which stays as it was trained."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(root / "ws", Path(folder) / "ws")
        with Engine(Path(folder) / "ws", base="embedded", quantization="none") as engine:
            yield engine


def run_two_domains(first: Path, second: Path, say: Say) -> dict[str, float]:
    """Two domains on Auto with the task of the first: exact match on each domain and in general."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(first / "ws", Path(folder) / "ws")
        with Engine(second / "ws", base="embedded", quantization="none", load=False) as engine:
            other = find_adapters(engine)[DOMAIN]
            other_data = engine.library.adapter(other).metadata["dataset"]["id"]
        for kind, item in (("adapters", other), ("datasets", other_data)):
            shutil.copytree(second / "ws" / kind / item, Path(folder) / "ws" / kind / item)
        with Engine(Path(folder) / "ws", base="embedded", quantization="none") as engine:
            own = next(a.id for a in engine.library.adapters() if a.name == DOMAIN and a.id != other)
            task = find_adapters(engine)[TASK]
            for adapter in (own, other):
                calibrate(engine, adapter)
            mix = Mix(
                name="all on Auto",
                weights={own: 1.0, other: 1.0, task: 1.0},
                auto={own: "hard", other: "hard"},
            )
            plain = Mix(name="plain sum", weights=mix.weights)
            dataset = engine.datasets.list()[0].id
            figures = {}
            for label, root in (("first", first), ("second", second)):
                for row in measure(engine, [mix, plain], Samples(root / "sample"), dataset):
                    name = "auto" if row["name"] == mix.name else "plain"
                    figures[f"{label}_{name}"] = row["exact_match"]
                    figures[f"general_{name}"] = row["general_exact_match"]
    for key, value in figures.items():
        say(f"two domains: {key} {value:.3f}")
    return {f"two_domains_{k}": v for k, v in figures.items()}


def measure_cost(root: Path, say: Say) -> dict[str, float]:
    """Time a token of a gated mix over the plain sum, paired, and the rows of its prefill."""
    ratios = []
    with open_copy(root) as engine:
        ids = find_adapters(engine)
        weights = {ids[DOMAIN]: 1.0, ids[TASK]: 1.0}
        calibrate(engine, ids[DOMAIN])
        gated = Mix(name="auto", weights=weights, auto={ids[DOMAIN]: "hard"})
        question = Samples(root / "sample").questions()[0]["messages"][0]["content"]
        sampling = Sampling(max_new_tokens=COST_TOKENS, temperature=1.0)

        def time_answer(mix: Mix) -> float:
            begin = time.perf_counter()
            frame = engine.chat.stream(question, [mix], sampling, exact=True).last()
            return (time.perf_counter() - begin) / max(frame.columns[0].tokens, 1)

        for mix in (gated, Mix(weights=weights)):
            time_answer(mix)
        for k in range(COST_ROUNDS):
            order = (gated, Mix(weights=weights)) if k % 2 else (Mix(weights=weights), gated)
            seconds = {bool(mix.auto): time_answer(mix) for mix in order}
            ratios.append(seconds[True] / seconds[False])
    say(f"cost: {statistics.median(ratios):.3f} of the plain sum's time a token")
    return {"time_a_token_over_plain": statistics.median(ratios), "extra_rows_at_prefill": 1.0}


def mean_with_interval(differences: list[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean and its 95 % interval, by the percentile bootstrap (Efron 1979)."""
    generator = random.Random(seed)
    means = sorted(statistics.fmean(generator.choices(differences, k=len(differences))) for _ in range(4000))
    return statistics.fmean(differences), means[100], means[-100]


def main() -> int:
    """Runs all pairs of domain and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the shipped domain with the first seed only")
    parser.add_argument("--domains", type=int, nargs="*", default=[0, 1, 2, 3], help="seeds of domains")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--workspaces", type=Path, help="folder of what was trained, kept")
    parser.add_argument("--demo-workspace", type=Path, help="only measure this workspace of a demo")
    parser.add_argument("--base", default="smollm2-135m", help="its base")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    args = parser.parse_args()
    if args.quick:
        args.domains, args.seeds = args.domains[:1], args.seeds[:1]

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    figures: dict[str, Any] = {}
    if args.demo_workspace:
        figures = run_demo_workspace(args.demo_workspace, args.base, say)
        if args.json:
            print(json.dumps(figures))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        place = args.workspaces or Path(folder)
        lost, best = [], []
        for seed in args.seeds:
            for domain in args.domains:
                found = run_pair(place / f"d{domain}_s{seed}", domain, seed, say)
                figures |= {f"{key}_d{domain}_s{seed}": value for key, value in found.items()}
                lost.append(100 * (found["heldout_plain"] - found["heldout_auto"]))
                best.append(found["harmonic_auto"])
                print(
                    f"domain {domain} seed {seed}: harmonic {found['harmonic_plain']:.2f} -> "
                    f"{found['harmonic_auto']:.2f}, held-out {100 * found['heldout_plain']:.0f} -> "
                    f"{100 * found['heldout_auto']:.0f} %, general {100 * found['general_plain']:.0f} -> "
                    f"{100 * found['general_auto']:.0f} %",
                    flush=True,
                )
        mean, low, high = mean_with_interval(lost)
        figures |= {
            "heldout_points_lost": mean,
            "heldout_points_lost_low": low,
            "heldout_points_lost_high": high,
        }
        figures |= {"harmonic_smallest": min(best), "harmonic_mean": statistics.fmean(best)}
        if len(args.domains) > 1:
            paths = [place / f"d{d}_s{args.seeds[0]}" for d in args.domains[:2]]
            figures |= run_two_domains(*paths, say)
        figures |= measure_cost(place / f"d{args.domains[0]}_s{args.seeds[0]}", say)
    print(
        f"\nharmonic mean at least {min(best):.2f} (goal {HARMONIC}); held-out points lost {mean:.1f} "
        f"[{low:.1f}, {high:.1f}] (goal at most {LOST_POINTS:g})"
    )
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
