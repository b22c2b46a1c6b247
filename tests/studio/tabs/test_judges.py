"""Judges below an experiment: a person's turn without names of rows, by role; the column once one counts."""

from __future__ import annotations

from typing import Any

import pytest

from core.engine import Engine
from core.errors import AccessError, BaseModelError, SpecError
from core.evaluate.judging import list_answers
from core.spec.access import Role
from core.spec.judge import JudgeSpec
from core.store.judgements import JudgeLog, StoredJudge, Verdict
from studio.experiment_tables import show_results
from studio.tabs import judges
from tests.core.engine.test_promotions import engine, measure  # noqa: F401 (the fixture)
from tests.studio.shown import actions, pressed, texts
from tests.studio.test_roles import call_as


def judge_all(engine: Engine, experiment_id: str) -> None:  # noqa: F811
    """A mix has judged: Good where the question is an even one."""
    spec = JudgeSpec(mix="mine-0001=1")
    log = JudgeLog(engine.workspace, experiment_id, StoredJudge("0" * 16, spec.to_json(), {}))
    for shown in list_answers(engine.experiments.cells(experiment_id)):
        log.append(Verdict(shown.key, "good" if shown.index % 2 == 0 else "poor", 0.1))


def read(shown: Any) -> str:
    return " ".join(texts(shown).split())


def test_a_person_judges_answers_without_names_until_the_judge_counts(engine: Engine) -> None:  # noqa: F811
    key = measure(engine, "mine-0001").id
    judge_all(engine, key)
    *_, panel = judges.open_panel(engine, key)
    assert "0 of 30 answers judged" in texts(panel) and "Where is lamp" in texts(panel)
    assert "mine" not in texts(panel) and "documents" not in texts(panel)
    assert [a["verdict"] for a in actions(panel)] == ["good", "poor", "skip"]
    assert "mine not counted yet: 0 of 30 answers judged by both it and a person" in read(
        show_results(engine, key)
    )
    shown, results = panel, None
    for _ in range(30):
        number = int(texts(shown).split("Where is lamp ")[1].split("?")[0])
        good, poor, _ = actions(shown)
        (shown, _), *rest = judges.act_on_panel(engine, pressed(**(poor if number % 2 else good)))
        results = rest[-1][1] if rest else results
    assert "30 of 30 answers judged" in texts(shown) and results is not None
    said = read(results)
    assert "Judge mine (share of Good)" in said and "mine counts: agrees with people" in said
    assert "50.0 % 38 to 62" in said


def test_a_viewer_sees_whether_a_judge_counts_and_no_answer(engine: Engine) -> None:  # noqa: F811
    key = measure(engine, "mine-0001").id
    judge_all(engine, key)
    with call_as(Role.VIEWER):
        *_, panel = judges.open_panel(engine, key)
        assert "Where is lamp" not in texts(panel) and judges.views.FOR_TRAINERS in texts(panel)
        for do in ("vote", "stop"):
            with pytest.raises(AccessError, match="role trainer"):
                list(judges.act_on_panel(engine, pressed(do=do, experiment=key)))
    assert list(judges.open_panel(engine, None)) == [None]


def test_a_judge_needs_an_experiment_and_a_base(engine: Engine) -> None:  # noqa: F811
    with pytest.raises(SpecError, match="No experiment is chosen"):
        next(judges.start(engine, None, "base", 0, ""))
    key = measure(engine, "mine-0001").id
    with pytest.raises(BaseModelError):
        next(judges.start(engine, key, "base", 0, ""))
    listed = judges.refresh(engine, None)
    assert listed["value"] == listed["choices"][0][1] == "base"
