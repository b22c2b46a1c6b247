"""Calibrating a gate in the Library tab: the choices, the progress, the result, errors at their fields."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from core.engine import Engine
from core.engine.calibration_data import GENERAL
from core.errors import SpecError
from studio.tabs import calibration, library
from tests.studio.tabs.conftest import ids, texts


def refresh(engine: Engine, kind: str, picked: str, shown: str = "") -> tuple[Any, ...]:
    return calibration.refresh(engine, kind, picked, shown, None, [])


def test_the_form_is_filled_for_the_selected_adapter(engine: Engine) -> None:
    domain, task = ids(engine)
    fold, shown, own, against, questions, lines, _ = refresh(engine, "adapters", domain)
    assert fold["visible"] is True and shown == domain and questions is False and lines == ""
    dataset = engine.library.adapter(domain).dataset
    assert own["value"] == dataset and dataset in [i for _, i in own["choices"]]
    other = engine.library.adapter(task).dataset
    assert against["value"] == [GENERAL, other] and against["choices"][0] == ("General text", GENERAL)
    kept = calibration.refresh(engine, "adapters", domain, domain, other, [GENERAL])
    assert "value" not in kept[2] and "value" not in kept[3], "what the user has chosen stays"
    for kind, picked in (("datasets", dataset), ("adapters", ""), ("adapters", "gone-0000")):
        assert refresh(engine, kind, picked, domain)[:2] == (gr.update(visible=False), "")


def test_a_calibration_shows_its_progress_and_what_was_measured(engine: Engine) -> None:
    domain, _ = ids(engine)
    engine.calibration.wait(domain)
    dataset = engine.library.adapter(domain).dataset
    against = engine.calibration.suggest_against(domain)
    shown = [texts(tree) for tree in calibration.calibrate(engine, domain, dataset, against, False)]
    found = engine.calibration.get(domain)
    assert found is not None and len(shown) >= 2
    said = engine.calibration.describe(domain)
    assert f"{said[:1].upper()}{said[1:]}. The threshold " in shown[-1]
    details = texts(library.refresh(engine, "adapters", domain)[2])
    assert f"Weight on Auto{said[:1].upper()}{said[1:]}." in details


def test_a_few_questions_take_the_place_of_its_own_data(engine: Engine) -> None:
    domain, task = ids(engine)
    dataset = engine.library.adapter(task).dataset
    rows = engine.datasets.rows(dataset, "train")[:5]
    lines = "\n\n".join(r["messages"][0]["content"] for r in rows)
    last = list(calibration.calibrate(engine, domain, None, [], False, lines))[-1]
    assert "Calibrated on 5 questions of your list against " in texts(last)
    with pytest.raises(SpecError, match="got 1 from your list") as caught:
        list(calibration.calibrate(engine, domain, None, [], False, "Where is the lamp?"))
    assert caught.value.field == "texts"


@pytest.mark.parametrize("is_own", [True, False])
def test_an_error_of_a_calibration_belongs_to_its_field(engine: Engine, is_own: bool) -> None:
    domain, _ = ids(engine)
    own = engine.library.adapter(domain).dataset if is_own else None
    words = "has documents" if is_own else "No dataset is chosen"
    with pytest.raises(SpecError, match=words) as caught:
        list(calibration.calibrate(engine, domain, own, [], True))
    assert caught.value.field == "own"


def test_a_stopped_calibration_says_that_the_old_one_stays(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain, _ = ids(engine)
    before = engine.library.adapter(domain).metadata.get("gate")

    def measure(*given: Any) -> Any:
        while True:
            yield None

    monkeypatch.setattr(engine.calibration, "_measure", measure)
    frames = calibration.calibrate(engine, domain, engine.library.adapter(domain).dataset, [], False)
    next(frames)
    running = refresh(engine, "adapters", domain)
    assert "calibration" in texts(running[-1]) or running[-1]["tag"] == "div"
    calibration.stop(engine, domain)
    assert "Stopped. What was calibrated before stays" in texts(list(frames)[-1])
    assert engine.library.adapter(domain).metadata.get("gate") == before
