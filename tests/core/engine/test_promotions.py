"""Promotion and reports: the gate decides, `production` is served, a rollback takes one step."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.data.training_rows import TrainingRows
from core.engine import Engine
from core.engine.experiment_html import format_html
from core.engine.experiment_report import (
    compare_reports,
    compute_checksum,
    list_changes,
    make_report,
    read_report,
    read_spec,
)
from core.errors import NotFound, SpecError
from core.server.model_names import ModelNotFound, find_model, list_models
from core.server.problems import Problem
from core.spec.experiment import ExperimentSpec
from core.spec.experiment_presets import ask_what_helps
from core.spec.mix import Mix
from core.spec.promotion import PromotionRule
from core.store import backup, promotions
from core.store import experiments as store
from core.store.experiments import Cell, CellAnswer, CitedPassage, Experiment, TimedAnswer
from core.store.promotions import Promotion
from core.store.workspace import Workspace
from tests.core.store.test_adapters import put

HOSTILE = "<script>alert(1)</script> & 'quoted' https://example.org/x"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A workspace with two adapters and a dataset of questions, without a base."""
    with Engine(tmp_path / "ws", load=False) as made:
        for name in ("mine", "other"):
            put(made.workspace, name, "f" * 64)
        pairs = tmp_path / "pairs.jsonl"
        rows = [{"question": f"Where is lamp {i}?", "answer": f"In room {i}."} for i in range(60)]
        pairs.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        made.datasets.import_files([pairs], "Pairs", "task")
        yield made


def measure(
    engine: Engine,
    adapter: str,
    factuality: float = 1.0,
    answer: str = "In room 1 [1].",
    retrieval: float = 0.2,
) -> Experiment:
    """An experiment whose cells are complete: the base states nothing, the mix as much as is given.

    Args:
        retrieval: factuality of the base with documents.
    """
    dataset = engine.datasets.list()[0].id
    spec = ask_what_helps(dataset, adapter, [dataset], {"split": "all"})
    experiment = store.create(engine.workspace, spec, "tiny", "f" * 64)
    for i, row in enumerate(experiment.rows):
        is_mix = bool(Mix.parse(row.mix).weights)
        digests = [[engine.library.adapter(a).sha256, 1.0, 0.0, "", None] for a in Mix.parse(row.mix).weights]
        stated = factuality if is_mix else retrieval * bool(row.passages)
        figures = {"factuality": stated, "f1": 0.5, "nats": 1.0, "scored_tokens": 2.0}
        if row.passages:
            figures |= {"citation_coverage": 1.0, "support": 1.0}
        passages = (CitedPassage(1, "Notes.md", HOSTILE),) if row.passages else ()
        answers = tuple(
            CellAnswer(n, f"Where is lamp {n}?", answer, f"In room {n}.", "", passages, figures=dict(figures))
            for n in range(60)
        )
        timed = tuple(TimedAnswer(n, 1.0, 10) for n in range(4))
        cell = Cell(f"{i:064x}", row.to_json(), {"mix": digests}, answers, (0.5, 0.5), timed)
        store.save_cell(engine.workspace, experiment.id, cell)
    return experiment


def test_a_mix_that_passes_is_production_and_a_rollback_takes_one_step(engine: Engine) -> None:
    assert engine.promotions.current() is None
    for name in ("mine", "other"):
        decision, promotion = engine.promotions.promote(name, measure(engine, f"{name}-0001").id)
        assert decision.status == "pass" and promotion and promotion.weights == {f"{name}-0001": 1.0}
        assert promotion.row == f"{name}-0001 + documents"  # of the rows of a mix, the one with documents
        model = find_model(engine, "production")
        assert model.mix.weights == promotion.weights and model.id == "production"
        assert model.digests == {f"{name}-0001": engine.library.adapter(f"{name}-0001").sha256}
    assert "production" in [m.id for m in list_models(engine)]
    recorded = engine.library.adapter("mine-0001").metadata["promotion"]
    assert recorded["status"] == "pass" and len(recorded["criteria"]) == 5 and recorded["promotion"]
    taken, now = engine.promotions.roll_back()
    assert "other-0001" in taken.weights and now and "mine-0001" in now.weights
    assert find_model(engine, "production").mix.weights == {"mine-0001": 1.0}
    assert engine.promotions.roll_back()[1] is None
    with pytest.raises(NotFound, match="No mix is promoted"):
        engine.promotions.roll_back()
    with pytest.raises(ModelNotFound):
        find_model(engine, "production")
    assert [type(line).__name__ for line in engine.promotions.history()] == [
        "Promotion", "Promotion", "Rollback", "Rollback",
    ]  # fmt: skip


def test_a_mix_that_fails_is_recorded_and_not_promoted(engine: Engine) -> None:
    experiment = measure(engine, "mine-0001", factuality=0.02)
    decision, promotion = engine.promotions.promote("mine", experiment.id)
    assert decision.status == "fail" and promotion is None and engine.promotions.current() is None
    assert engine.library.adapter("mine-0001").metadata["promotion"]["status"] == "fail"
    for name in ("mine", "mine-0001", "mine-0001 + documents"):  # of two rows, the one with documents
        assert engine.promotions.decide(name, experiment.id).row == "mine-0001 + documents"
    with pytest.raises(NotFound, match="no row with the mix 'other'"):
        engine.promotions.decide("other", experiment.id)


def test_the_gate_is_void_where_documents_do_not_help_the_base(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = measure(engine, "mine-0001", retrieval=0.0)
    decision, promotion = engine.promotions.promote("mine", experiment.id)
    assert decision.status == "void" and promotion is None and engine.promotions.current() is None
    assert engine.library.adapter("mine-0001").metadata["promotion"]["status"] == "void"
    assert [c.status for c in decision.criteria] == ["void", "pass", "pass", "pass", "pass"]
    text = decision.criteria[0].text
    assert "0.0 % → 0.0 % with documents on 60 questions: +0.0 points (95 % interval +0.0 to +0.0)" in text
    assert "name 'base' as the baseline of the rule" in text and "proves nothing" in decision.text
    page = format_html(make_report(engine.experiments.results(experiment.id)))
    assert "<b class='muted'>void</b>" in page and "the gate is void" in page
    rule = PromotionRule(baseline="base")
    assert engine.promotions.decide("mine", experiment.id, rule).status == "pass"
    root = str(engine.workspace.root)
    engine.close()
    assert main(["promote", "mine", "--against", experiment.id, "--workspace", root]) == 5
    assert capsys.readouterr().out.startswith("void                  Factuality of the base")


def test_retrieval_is_left_out_without_a_row_of_the_plain_base(engine: Engine) -> None:
    measured = measure(engine, "mine-0001", retrieval=0.0)
    spec = ExperimentSpec.from_json({**measured.spec, "mixes": [], "rows": [
        {"name": "rag", "documents": "on"}, {"name": "both", "mix": "mine-0001", "documents": "on"},
    ]})  # fmt: skip
    experiment = store.create(engine.workspace, spec, "tiny", "f" * 64)
    cells = store.read_cells(engine.workspace, measured.id)
    for row, name in zip(experiment.rows, ("base + documents", "mine-0001 + documents"), strict=True):
        cell = replace(cells[name], row=row.to_json())
        store.save_cell(engine.workspace, experiment.id, cell)
    decision = engine.promotions.decide("both", experiment.id)
    assert decision.status == "pass" and "retrieval" not in [c.name for c in decision.criteria]
    spec = ExperimentSpec.from_json({**spec.to_json(), "mixes": [""]})
    begun = store.create(engine.workspace, spec, "tiny", "f" * 64)
    for row in begun.rows[1:]:
        store.save_cell(engine.workspace, begun.id, replace(cells["base + documents"], row=row.to_json()))
    with pytest.raises(SpecError, match="The row 'base' is not complete"):
        engine.promotions.decide("both", begun.id)
    assert make_report(engine.experiments.results(begun.id))["decisions"] == []


def test_an_adapter_that_saw_a_test_row_is_refused_with_the_row(engine: Engine) -> None:
    from core.data.training_rows import hash_rows

    experiment = measure(engine, "mine-0001")
    rows = engine.datasets.rows(experiment.settings.dataset, "all")
    seen = TrainingRows(trained=frozenset(hash_rows(rows[4:6])))
    folder = engine.workspace.path("adapters", "mine-0001")
    for name, content in seen.to_files().items():
        (folder / name).write_bytes(content)
    with pytest.raises(SpecError, match="'mine' was trained on row 5 of the test rows: 'Where is lamp"):
        engine.promotions.promote("mine", experiment.id)
    assert engine.promotions.current() is None


def test_an_adapter_that_has_changed_is_neither_promoted_nor_served(engine: Engine) -> None:
    experiment = measure(engine, "mine-0001")
    assert engine.promotions.promote("mine", experiment.id)[1] is not None
    from tests.core.store.test_adapters import factors

    put(engine.workspace, "mine", "f" * 64, factors(0.2))
    with pytest.raises(SpecError, match="has changed since the experiment measured it"):
        engine.promotions.promote("mine", experiment.id)
    with pytest.raises(Problem, match="has changed since it was promoted"):
        find_model(engine, "production")
    assert "production" not in [m.id for m in list_models(engine)]


def test_a_record_that_a_crash_cut_short_leaves_the_promotion_before(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    made = [promotions.promote(workspace, Promotion("", n, {}, {}, "e", "r", {})) for n in ("one", "two")]
    whole = workspace.promotions_path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):  # every byte at which the second line may end
        workspace.promotions_path.write_bytes(whole[:size])
        current = promotions.find_current(workspace)
        assert current and current.id == (made[1].id if size == len(whole) - 1 else made[0].id)
    workspace.promotions_path.write_bytes(whole[: len(whole) - 9])
    after = promotions.promote(workspace, Promotion("", "three", {}, {}, "e", "r", {}))
    assert promotions.find_current(workspace) == after
    assert promotions.roll_back(workspace)[1] == made[0]


def test_the_terminal_exits_with_the_decision(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = measure(engine, "mine-0001"), measure(engine, "other-0001", factuality=0.0)
    root = str(engine.workspace.root)
    engine.close()
    place = ["--workspace", root, "--json"]
    assert main(["promote", "other", "--against", bad.id, *place]) == 3
    assert main(["promote", "mine", "--against", good.id, "--dry-run", *place]) == 0
    assert not Workspace(root).promotions_path.exists()
    assert main(["promote", "mine", "--against", good.id, *place]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["status"] == "pass" and said["promotion"].startswith("p-")
    assert main(["rollback", *place]) == 0 and main(["rollback", *place]) == 1


class _Addresses(HTMLParser):
    """Collects everything in a page that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, Any]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"src", "href", "data", "action", "poster", "srcset", "background"}
        self.found += [(tag, a) for a in attrs if a[0] in names or a[0].startswith("on")]
        if tag in ("script", "link", "iframe", "object", "embed", "img", "base", "form"):
            self.found.append((tag, None))


def test_a_report_is_one_page_without_scripts_or_addresses(engine: Engine) -> None:
    experiment = measure(engine, "mine-0001", answer=HOSTILE)
    results = engine.experiments.results(experiment.id)
    report = make_report(results)
    page = format_html(report)
    parser = _Addresses()
    parser.feed(page)
    assert parser.found == [] and "default-src 'none'" in page and "<svg" in page
    assert "url(" not in page and "@import" not in page and "&lt;script&gt;" in page
    assert len(page) < 500_000 and not re.search(r"<script", page)
    change = list_changes(results)[-1]
    assert (change.second, change.wins, change.losses) == ("mine-0001 + documents", 60, 0)
    assert "60 wins, 0 losses, 0 ties by factuality" in page
    assert report["decisions"][-1]["status"] == "pass" and report["sha256"] == compute_checksum(report)


def test_a_report_says_whether_repeated_figures_agree(engine: Engine) -> None:
    report = make_report(engine.experiments.results(measure(engine, "mine-0001").id))
    content = json.dumps(report).encode()
    assert read_report(content) == report and isinstance(read_spec(report), ExperimentSpec)
    same = compare_reports(report, make_report(engine.experiments.results(measure(engine, "mine-0001").id)))
    assert len(same) == 4 and all(a.agrees for a in same) and same[0].answers == 60
    other = make_report(engine.experiments.results(measure(engine, "mine-0001", 0.5, "Elsewhere.").id))
    found = {a.row: a for a in compare_reports(report, other)}
    assert not found["mine-0001"].agrees and found["mine-0001"].equal == 0
    assert ("factuality", 1.0, 0.5) in found["mine-0001"].differences
    assert "Factuality was 1.0000 and is 0.5000" in found["mine-0001"].describe()
    for wrong in (content.replace(b'"format": 1', b'"format": 2'), content[:-9], b"[]"):
        with pytest.raises(SpecError):
            read_report(wrong)
    with pytest.raises(SpecError, match="was changed"):
        read_report(content.replace(b"In room 1.", b"In room 2.", 1))


def test_a_backup_holds_experiments_and_what_is_promoted(engine: Engine, tmp_path: Path) -> None:
    experiment = measure(engine, "mine-0001")
    engine.promotions.promote("mine", experiment.id)
    packed = engine.library.back_up()
    backup.unpack(packed, tmp_path / "copy")
    copy = Workspace(tmp_path / "copy")
    current = promotions.find_current(copy)
    assert current and current == engine.promotions.current()
    assert store.read_cells(copy, experiment.id) == engine.experiments.cells(experiment.id)
    packed.unlink()
