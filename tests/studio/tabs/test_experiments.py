"""Experiments on the Evaluate tab: the table, the gate, promotion and rollback, by what roles may do."""

from __future__ import annotations

import pytest

from core.engine import Engine
from core.errors import AccessError, SpecError
from core.spec.access import Role
from studio.tabs import experiments
from tests.core.engine.test_promotions import engine, measure  # noqa: F401 (the fixture)
from tests.studio.shown import actions, pressed, texts
from tests.studio.test_roles import call_as


def test_results_show_figures_the_gate_and_what_changed(engine: Engine) -> None:  # noqa: F811
    key = measure(engine, "mine-0001").id
    *_, shown = experiments.open_experiment(engine, key)
    said = texts(shown)
    assert "mine + documents" in said and "Base + documents" in said and "mine-0001" not in said
    assert "100.0 % 100 to 100" in " ".join(said.split())
    assert "May mine + documents go to production?" in said and "Make it production" in said
    assert {"do": "promote", "experiment": key, "row": "mine-0001 + documents"} in actions(shown)
    failed = measure(engine, "other-0001", factuality=0.0).id
    *_, shown = experiments.open_experiment(engine, failed)
    assert "Make it production" not in texts(shown) and "lower end must be at least +5" in texts(shown)
    (empty,) = experiments.open_experiment(engine, None)
    assert "No experiment yet" in texts(empty)


def test_an_owner_promotes_and_rolls_back_and_a_trainer_does_not(engine: Engine) -> None:  # noqa: F811
    key = measure(engine, "mine-0001").id
    event = pressed(do="promote", experiment=key, row="mine-0001 + documents")
    with call_as(Role.TRAINER), pytest.raises(AccessError):
        list(experiments.act_on_experiment(engine, event))
    assert "Nothing is promoted" in texts(experiments.show_production(engine))
    *_, (_, _, shown) = experiments.act_on_experiment(engine, event)
    assert "is mine" in texts(shown) and actions(shown) == [{"do": "rollback"}]
    with call_as(Role.VIEWER):
        assert actions(experiments.show_production(engine)) == []
    assert "Nothing is promoted" in texts(experiments.roll_back(engine, pressed(do="rollback")))


def test_lists_follow_the_workspace_and_an_incomplete_form_is_refused(engine: Engine) -> None:  # noqa: F811
    measure(engine, "mine-0001")
    questions, _, mixes, listed, _ = experiments.refresh(engine, None, [], None, None)
    assert [name for name, _ in questions["choices"]] == ["Pairs"] and questions["value"]
    assert {name for name, _ in mixes["choices"]} >= {"mine", "other"} and len(listed["choices"]) == 1
    with pytest.raises(SpecError, match="No questions are chosen"):
        experiments.start(engine, None, [], "mine", 0)
    with pytest.raises(SpecError, match="No mix is chosen"):
        experiments.start(engine, "x", [], None, 0)
