"""Every example runs and prints what it promises; the files and commands that the README names exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.engine import Engine
from core.spec.mix import Mix, Sampling
from core.spec.presets import resolve
from examples.train import train

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for p in (ROOT / "examples").glob("*.py") if p.name != "__init__.py")
# What each example prints, and the kinds of items that it leaves in its workspace.
OUTPUT = {
    "bake": (r"rank 16(.|\n)*live mix +perplexity \d.*\nbaked +perplexity \d.*\n.*zip", {"reports"}),
    "blind_test": (r"(.+ -> .+\n){8}(domain|both): \d wins and \d ties in 8 votes(.|\n)*win rate", {"mixes"}),
    "grid": (r"(Rank x rate: .*: finished\n){4}(\{'rank': \d+.* loss \d.*\n){4}The second best", {"grids"}),
    "mix": (r"\n +base(.|\n)*base, then task 1\.5(.|\n)*half domain \+ task +perplexity +\d", {"reports"}),
    "own_reader": (r"^40 rows, \{'train': 28, 'val': 6, 'test': 6\}\n.*tool \d+\?.*\[In\]", {"datasets"}),
    "train": (r"^\('domain-\w+', 'task-\w+'\)$", {"adapters", "datasets"}),
    "two_processes": (r"One process: finished, losses (.+)\s*\nTwo processes: finished, losses \1", {"runs"}),
    "weight_map": (r"25 of 25(.|\n)*task +-0\.50 +0\.00 .*\n( +-?\d\.\d\d.*\n){5}.*lowest", {"maps"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the example `train` has trained its two adapters."""
    folder = tmp_path_factory.mktemp("examples") / "ws"
    printed = run_example("train", folder)
    assert len(re.findall(r"^(?:Domain|Task): finished, loss \d\.\d\d -> \d\.\d\d", printed, re.M)) == 2
    return folder


def run_example(name: str, folder: Path) -> str:
    command = [sys.executable, "-m", f"examples.{name}", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_its_output_listed_here() -> None:
    assert [f.stem for f in FILES] == sorted(OUTPUT)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_examples_are_short_and_change_no_path(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 50 and "sys.path" not in text and "__file__" not in text
    assert f"python -m examples.{file.stem}" in text, "the docstring says how to run it"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OUTPUT))
def test_the_example_runs_and_prints_its_results(workspace: Path, name: str) -> None:
    pattern, kinds = OUTPUT[name]
    printed = run_example(name, workspace)
    assert re.search(pattern, printed, re.M), printed
    assert all(any((workspace / kind).iterdir()) for kind in kinds)


def test_train_reads_files_of_your_own(tmp_path: Path, corpus: Path, pairs: Path, tiny_base: Path) -> None:
    with Engine(tmp_path / "ws", str(tiny_base)) as engine:
        domain, task = train(engine, corpus, pairs)
        assert [a.id for a in engine.library.adapters()] == [task, domain]
        assert engine.library.adapter(task).stacked_on == domain
        mixes = engine.library.default_mixes()
        frame = engine.chat.stream("Where is the red lamp?", mixes, Sampling(max_new_tokens=4)).last()
        assert [c.stamp["mix"] for c in frame.columns] == ["Base", "Domain", "Task", "Domain + Task"]


def test_a_weight_map_of_one_adapter_orders_its_weights(
    tmp_path: Path, corpus: Path, tiny_base: Path
) -> None:
    """The row of weight 0 is a sweep of the other adapter: the more of it, the lower the perplexity."""
    fast = {"max_steps": 40, "learning_rate": 5e-3, "max_length": 48, "accumulation": 1}
    weights = (-0.5, 0.0, 0.5, 1.0, 1.5)
    with Engine(tmp_path / "ws", str(tiny_base)) as engine:
        data = engine.datasets.import_files([corpus], "Corpus", "domain").id
        run = engine.runs.wait(
            engine.runs.start(resolve("domain", "standard", {"name": "Dom", "dataset": data, **fast}))
        )
        mixes = [Mix(name=f"{w:+.2f}", weights={run.adapter: w}) for w in weights]
        progress = engine.evaluation.measure(mixes, data, "test", general=False).last()
        rows = engine.evaluation.report(progress.report).rows
    assert [row["name"] for row in rows] == ["-0.50", "+0.00", "+0.50", "+1.00", "+1.50"]
    below, zero, half, one, _ = (row["perplexity"] for row in rows)
    assert one < half < zero < below


def test_every_file_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [x for x in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in x]
    assert links
    missing = [x for x in links if not (ROOT / x).exists()]
    assert not missing


@pytest.mark.parametrize(
    "command",
    re.findall(
        r"^python -m core (\w+(?: (?:add|domain))?)", (ROOT / "README.md").read_text(encoding="utf-8"), re.M
    ),
)
def test_every_command_of_the_readme_exists(command: str) -> None:
    from core.cli.main import build_parser

    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*command.split(), "--help"])
    assert ended.value.code == 0
