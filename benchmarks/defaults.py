"""Do the recommended settings learn from 20, 80, 400 and 2,000 rows?

    python -m benchmarks.defaults --quick --json          20 and 80 rows, one seed
    python -m benchmarks.defaults --cache figures.jsonl   everything; a cell in the cache is not trained again
    python -m benchmarks.defaults --base FOLDER --rows 20 80 400 --one-seed
                                                          on another base, with the preset for its size

Trains on the embedded base or the one that --base names, with three seeds up to 80 rows and with one above,
under every policy of `POLICIES`. A task row is a question with a note, and its answer in a form that the
base never read: "As for the mist bell: red." A text row is a paper of an invented station. The held-out rows
ask about other notes, or are other papers of the same station. A task run is measured by F1 and by the
perplexity of the answers, a text run by perplexity and by the share of facts that it recalls. No file of
`tests/data/own` is used here."""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assets.world import domain as domains
from assets.world import tasks, things
from core.engine import Engine
from core.evaluate.measure import EvaluationData
from core.spec.mix import Mix
from core.spec.presets import preset_of_size, resolve
from core.spec.training import RunStatus

SIZES = (20, 80, 400, 2000)
QUICK_SIZES = (20, 80)
SEEDS = (0, 1, 2)
SEEDS_UP_TO = 80  # rows; larger sets are trained with the first seed only
HELD_OUT = 48  # rows that are measured and never trained
DATA_SEED = 5  # of the station and the notes
KINDS = ("task", "domain")
Row = dict[str, str]
Policy = Callable[[Engine, str, str], dict[str, Any]]  # (engine, dataset id, preset) -> settings


def make_rows(kind: str, count: int) -> tuple[list[Row], list[Row]]:
    """Rows to import, and held-out rows of the same kind.

    Args:
        kind: "task" or "domain".
        count: rows to import; they are a prefix of the rows of every larger count.
    """
    if kind == "task":
        rows = ask_notes(random.Random(f"notes-{DATA_SEED}"), count)
        return rows, ask_notes(random.Random(f"held-out-{DATA_SEED}"), HELD_OUT)
    station = domains.draw_domain(DATA_SEED)
    papers = domains.write_papers(random.Random(f"papers-{DATA_SEED}"), station, each=200)
    rows = [{"text": p.text} for p in papers]
    return rows[:count], rows[-HELD_OUT:]


def ask_notes(rng: random.Random, count: int) -> list[Row]:
    """Writes questions that come with a note about a thing that occurs only there."""
    rows = []
    for _ in range(count):
        thing = things.draw_one_off(rng)
        relations = rng.sample(things.THING_RELATIONS, 2)
        note = " ".join(things.reword(rng, thing, r) for r in relations)
        relation = rng.choice(relations)
        answer = f"As for {thing.phrase}: {thing.facts[relation]}."
        rows.append({"question": f"{note} {things.ask(rng, thing, relation)}", "answer": answer})
    return rows


def measure(engine: Engine, kind: str, held_out: list[Row], dataset: str, adapter: str) -> dict[str, Any]:
    """Figures of the base and of an adapter on held-out rows, as "base/..." and "adapter/..."."""
    if kind == "task":
        questions = [
            {
                "messages": [
                    {"role": "user", "content": r["question"]},
                    {"role": "assistant", "content": r["answer"]},
                ]
            }
            for r in held_out
        ]
        data = EvaluationData(questions={"": questions})
    else:
        probe = tasks.write_recall_probe(domains.draw_domain(DATA_SEED))
        cloze = [(r["prompt"], r["completion"]) for r in probe]
        data = EvaluationData(texts={"": [r["text"] for r in held_out]}, cloze=cloze)
    mixes = [Mix(name="base"), Mix(name="adapter", weights={adapter: 1.0})]
    progress = None
    for progress in engine.evaluation.measure_data(mixes, lambda: data, dataset, "Held out", "test"):
        pass
    assert progress is not None
    rows = engine.evaluation.report(str(progress.report)).rows
    names = ("f1", "exact_match", "perplexity", "answer_perplexity", "recall")
    return {f"{r['name']}/{k}": r[k] for r in rows for k in names if k in r}


def run_cell(kind: str, count: int, seed: int, policy: Policy, base: str = "embedded") -> dict[str, Any]:
    """Imports, trains and measures once, in a temporary workspace; returns the figures of the cell."""
    rows, held_out = make_rows(kind, count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        with Engine(Path(folder) / "workspace", base=base, quantization="none") as engine:
            dataset = engine.datasets.import_files([path], "Rows", kind, seed=DATA_SEED)
            parameters = engine.bases.current(wait=True).parameters
            preset = "embedded" if base == "embedded" else preset_of_size(parameters)
            settings = policy(engine, dataset.id, preset)
            begin = time.monotonic()
            spec = resolve(kind, preset, {**settings, "name": "Rows", "dataset": dataset.id, "seed": seed})
            run = engine.runs.wait(engine.runs.start(spec))
            assert run.status is RunStatus.DONE, run.error
            seconds = time.monotonic() - begin
            history = engine.runs.history(run.id)
            results = engine.library.adapter(run.adapter).results
            figures = measure(engine, kind, held_out, dataset.id, run.adapter)
    return {
        "seconds": round(seconds, 1),
        "steps": run.step,
        "kept_step": results.get("kept_step"),
        "train_loss": results.get("train_loss"),
        "validation": [[s, round(v, 4)] for s, v in history.validation],
        "settings": {k: v for k, v in spec.to_json().items() if k not in ("name", "dataset")},
        **figures,
    }


def recommend(engine: Engine, dataset: str, preset: str) -> dict[str, Any]:
    """What the form and the terminal use for this dataset."""
    return engine.runs.recommend(dataset, preset).settings


def use_preset(engine: Engine, dataset: str, preset: str) -> dict[str, Any]:
    """The preset of the base, whatever the amount of data."""
    return {}


POLICIES: dict[str, Policy] = {"recommended": recommend, "preset": use_preset}
Cell = tuple[str, int, int, str]  # kind, rows, seed, policy


def list_cells(
    sizes: tuple[int, ...], one_seed: bool, kinds: tuple[str, ...], policies: tuple[str, ...]
) -> list[Cell]:
    """All cells, those of few rows first."""
    cells = []
    for rows in sizes:
        seeds = SEEDS if rows <= SEEDS_UP_TO and not one_seed else SEEDS[:1]
        cells += [(k, rows, s, p) for s in seeds for k in kinds for p in policies]
    return cells


def read_cache(path: Path | None, base: str) -> dict[Cell, dict[str, Any]]:
    """The cells of an earlier, perhaps interrupted, call on the same base."""
    if path is None or not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        stored = json.loads(line)
        if stored.get("base", "embedded") != base:
            continue
        kind, rows, seed, policy = stored["cell"]
        found[kind, rows, seed, policy] = stored
    return found


def format_table(cells: dict[Cell, dict[str, Any]]) -> str:
    """One row for each kind, number of rows and policy, with the figures of all seeds."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for (kind, rows, _, policy), figures in cells.items():
        groups.setdefault((kind, rows, policy), []).append(figures)
    lines = [
        "| kind | rows | settings | steps | kept | seconds | perplexity, base → adapter | F1 or recall % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, rows, policy in sorted(groups, key=lambda g: (g[0], g[1], g[2])):
        group = groups[kind, rows, policy]
        score = "f1" if kind == "task" else "recall"
        base, scored = group[0]["base/perplexity"], group[0][f"base/{score}"]
        after = " / ".join(f"{f['adapter/perplexity']:.2f}" for f in group)
        gains = " / ".join(f"{100 * f[f'adapter/{score}']:.0f}" for f in group)
        seconds = " / ".join(f"{f['seconds']:.0f}" for f in group)
        kept = " / ".join(str(f["kept_step"]) for f in group)
        lines.append(
            f"| {kind} | {rows:,} | {policy} | {group[0]['steps']} | {kept} | {seconds} "
            f"| {base:.1f} → {after} | {100 * scored:.0f} → {gains} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Trains all cells that are not in the cache, and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20 and 80 rows, one seed")
    parser.add_argument("--rows", nargs="*", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--one-seed", action="store_true", help="also for few rows")
    parser.add_argument("--base", default="embedded", help='folder of the base, or "embedded"')
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--policies", nargs="*", choices=tuple(POLICIES), default=list(POLICIES))
    parser.add_argument("--cache", type=Path, help="file of finished cells, one JSON object a line")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    args = parser.parse_args()
    done = read_cache(args.cache, args.base)
    results: dict[Cell, dict[str, Any]] = {}
    sizes = QUICK_SIZES if args.quick else tuple(sorted(args.rows))
    one_seed = args.quick or args.one_seed
    for cell in list_cells(sizes, one_seed, tuple(args.kinds), tuple(args.policies)):
        kind, rows, seed, policy = cell
        if cell not in done:
            figures = run_cell(kind, rows, seed, POLICIES[policy], args.base)
            done[cell] = {"cell": cell, "base": args.base, **figures}
            if args.cache:
                with open(args.cache, "a", encoding="utf-8") as f:
                    f.write(json.dumps(done[cell]) + "\n")
        results[cell] = done[cell]
        print(f"{kind} {rows} seed {seed} {policy}: done", file=sys.stderr, flush=True)
    print(format_table(results))
    if args.json:
        summary = {}
        for (kind, rows, seed, policy), values in results.items():
            for name in ("steps", "seconds", "kept_step", *(n for n in values if "/" in n)):
                summary[f"{kind}/{rows}/s{seed}/{policy}/{name}"] = values[name]
        print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
