"""A first visitor's own files: from a folder of documents and a spreadsheet to answers, by the defaults.

The files are in `tests/data/own`; nothing in them comes from the sample data or its generator. Dropping files
is not a click, everything else that the visitor presses is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.engine import Engine
from core.spec.mix import Mix
from core.spec.training import RunStatus
from tests.browser.conftest import Visit, free_port
from tests.browser.test_path import advance, columns, press, until

pytestmark = [pytest.mark.slow, pytest.mark.browser]
OWN = Path(__file__).resolve().parents[1] / "data" / "own"
CLICKS = 8
GAIN = 30.0  # points of F1 over the base, on questions that no adapter was trained on


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, str]]:
    """A studio on the embedded base, with an empty workspace."""
    from studio.app import serve

    with Engine(tmp_path_factory.mktemp("own"), base="embedded", quantization="none", device="cpu") as engine:
        page = serve(engine, port=free_port(), block=False)
        yield engine, page.local_url
        page.close(verbose=False)


class Clicks:
    """Counts what the visitor presses."""

    def __init__(self) -> None:
        self.count = 0

    def press(self, page, name: str) -> None:
        self.count += 1
        press(page, name)

    def advance(self, page, start: str) -> None:
        self.count += 1
        advance(page, start)


def import_files(visit: Visit, clicks: Clicks, files: list[Path], held_out: bool = False) -> str:
    """Drops files, imports them under the suggested name, and returns the id of the dataset."""
    page, engine = visit.page, visit.engine
    before = {d.id for d in engine.datasets.list()}
    page.locator(".drop input[type=file]").first.set_input_files([str(f) for f in files])
    add = page.get_by_role("button", name="Import the files", exact=True)
    until(add.is_enabled, 120, "the preview of the files")
    if held_out:
        clicks.count += 1
        page.get_by_label("For evaluation only").check()
        until(add.is_enabled, 60, "the preview as held-out data")
    clicks.press(page, "Import the files")
    until(lambda: {d.id for d in engine.datasets.list()} - before, 120, "the dataset")
    (dataset,) = {d.id for d in engine.datasets.list()} - before
    return dataset


def test_own_files_give_adapters_that_answer_better_than_the_base(visit: Visit) -> None:
    page, engine, clicks = visit.page, visit.engine, Clicks()
    texts = import_files(visit, clicks, [OWN / "book.txt", *sorted((OWN / "papers").iterdir())])
    pairs = import_files(visit, clicks, [OWN / "questions.csv"])
    held_out = import_files(visit, clicks, [OWN / "held_out.csv"], held_out=True)
    kinds = {d.id: (d.kind, d.purpose, d.roles) for d in engine.datasets.list()}
    columns_of_pairs = {"question": "pregunta", "answer": "respuesta"}
    assert kinds == {
        texts: ("domain", "training", {"text": "text"}),
        pairs: ("task", "training", columns_of_pairs),
        held_out: ("task", "evaluation", columns_of_pairs),
    }
    splits = engine.datasets.get(texts).splits
    assert all(splits[s] >= 4 for s in ("train", "val", "test")), "text is split inside the files"
    clicks.advance(page, "Train the domain adapter")
    until(lambda: any(r.kind == "domain" for r in engine.runs.list()), 60, "the domain run")
    clicks.advance(page, "Train the task adapter")
    until(lambda: len(engine.runs.list()) == 2, 60, "the task run")
    until(lambda: len(engine.library.adapters()) == 2, 1200, "both adapters")
    runs = {r.kind: engine.runs.wait(r.id) for r in engine.runs.list()}
    for run in runs.values():
        assert run.status is RunStatus.DONE and run.is_better_than_base, (run.name, run.outcome, run.error)
        assert run.step >= 150, "the defaults follow from the data"
    assert runs["task"].spec.stack_on == runs["domain"].adapter
    assert runs["task"].spec.dataset == pairs, "nothing trains on the held-out questions"
    clicks.advance(page, "Compare")
    until(lambda: len(columns(page)) == 4, 60, "four columns")
    clicks.press(page, "Answer")
    until(
        lambda: len(columns(page)) == 4 and all("tokens/s" in c for c in columns(page)), 120, "four answers"
    )
    assert clicks.count <= CLICKS
    figures = measure(engine, held_out, {run.adapter: 1.0 for run in runs.values()})
    assert 100 * (figures["adapters"]["f1"] - figures["base"]["f1"]) >= GAIN, figures


def measure(engine: Engine, held_out: str, weights: dict[str, float]) -> dict[str, dict[str, float]]:
    """F1 and exact match of the base and of both adapters together on the held-out questions."""
    mixes = [Mix(name="base"), Mix(name="adapters", weights=weights)]
    progress = None
    for progress in engine.evaluation.measure(mixes, held_out, "test"):
        pass
    assert progress is not None
    rows = engine.evaluation.report(str(progress.report)).rows
    return {r["name"]: {k: r[k] for k in ("f1", "exact_match")} for r in rows}
