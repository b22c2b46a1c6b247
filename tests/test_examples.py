"""The examples run, and stay short; the README's words are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from examples import train_and_mix, weight_sweep

ROOT = Path(__file__).resolve().parents[1]


def test_examples_are_under_fifty_lines() -> None:
    files = sorted((ROOT / "examples").glob("*.py"))
    assert len(files) >= 2 and all(len(f.read_text().splitlines()) < 50 for f in files)


def test_train_and_mix_trains_both_and_answers_four_mixes(tiny_base: Path, corpus: Path, pairs: Path) -> None:
    answers = train_and_mix.main(
        str(corpus), str(pairs), "Where is the red lamp?", base=str(tiny_base), steps=4
    )
    assert list(answers) == ["Base", "Domain", "Task", "Domain + task"]


def test_weight_sweep_measures_every_weight(tiny_base: Path, tmp_path: Path, corpus: Path) -> None:
    from core.engine import Engine
    from core.spec.presets import resolve

    with Engine(tmp_path / "ws", str(tiny_base)) as engine:
        data = engine.datasets.import_files([corpus], "Corpus", "domain").id
        fast = {
            "name": "Dom",
            "dataset": data,
            "max_steps": 40,
            "learning_rate": 5e-3,
            "max_length": 48,
            "accumulation": 1,
        }
        engine.runs.wait(engine.runs.start(resolve("domain", "standard", fast)))
    found = weight_sweep.main(str(tmp_path / "ws"), data, "Dom", base=str(tiny_base))
    assert list(found) == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert found[1.0] < found[0.5] < found[0.0] < found[-0.5]


def test_every_file_the_readme_names_is_there() -> None:
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
def test_every_command_of_the_readme_is_one_of_ours(command: str) -> None:
    from core.cli.main import build_parser

    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*command.split(), "--help"])
    assert ended.value.code == 0
