"""The line at the top of the page: what it advises, what it names, and when it shrinks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from core.spec.training import RunStatus
from studio import advice
from studio.components import guide
from studio.views.practice import practice_base_note

BASE = SimpleNamespace(name="embedded", error="", loading=False, parameters=0, device="cpu", quantization="")


def dataset(kind: str, name: str, purpose: str = "training") -> Any:
    return SimpleNamespace(id=name.lower(), kind=kind, name=name, purpose=purpose)


def adapter(kind: str, name: str) -> Any:
    return SimpleNamespace(id=name.lower(), kind=kind, name=name)


def run(name: str, status: RunStatus, step: int = 3) -> Any:
    return SimpleNamespace(
        id="r", name=name, kind="task", status=status, step=step, total_steps=9, created=1.0, adapter="",
        resumable=status is RunStatus.INTERRUPTED, error="",
    )  # fmt: skip


def texts(node: Any) -> str:
    return node if isinstance(node, str) else " ".join(texts(k) for k in (node or {}).get("kids", []))


def test_the_advice_to_train_names_the_dataset_and_the_base() -> None:
    data = [dataset("domain", "Letters")]
    shown = advice.next_step(BASE, data, [], [], {"domain": "Letters"})
    assert texts(shown.buttons[0]) == "Train the domain adapter on Letters"
    assert "on the base embedded" in shown.text


def test_the_advice_to_train_a_task_names_what_it_is_trained_on_top_of() -> None:
    data = [dataset("domain", "Letters"), dataset("task", "Questions")]
    shown = advice.next_step(BASE, data, [adapter("domain", "Letters")], [], {"task": "Questions"})
    assert texts(shown.buttons[0]) == "Train the task adapter on Questions"
    assert "on top of Letters" in shown.text


def test_data_for_evaluation_only_is_never_advised_for_training() -> None:
    shown = advice.next_step(BASE, [dataset("task", "Exam", "evaluation")], [], [], {})
    assert not any(b["act"]["do"] == "train" for b in shown.buttons)


def test_the_advice_to_compare_names_the_adapters_and_the_base() -> None:
    adapters = [adapter("task", "Answers"), adapter("domain", "Letters")]
    shown = advice.next_step(BASE, [dataset("domain", "Letters")], adapters, [])
    assert texts(shown.buttons[0]) == "Compare the mixes of Letters and Answers"
    assert shown.text.startswith("Compare the base embedded with Letters and Answers")
    assert shown.summary == "Letters and Answers on the base embedded."


def test_a_long_name_is_shortened_in_buttons() -> None:
    name = "x" * 200
    shown = advice.next_step(BASE, [dataset("domain", name)], [], [], {"domain": name})
    assert len(texts(shown.buttons[0])) <= advice.NAME_LENGTH + len("Train the domain adapter on ")


@pytest.mark.parametrize(
    ("status", "button"), [(RunStatus.RUNNING, "Watch Answers"), (RunStatus.INTERRUPTED, "Resume Answers")]
)
def test_the_buttons_of_a_run_name_it(status: RunStatus, button: str) -> None:
    shown = advice.next_step(BASE, [dataset("domain", "Letters")], [], [run("Answers", status)])
    assert button in [texts(b) for b in shown.buttons]


def line(steps_done: int, **changes: Any) -> Any:
    kinds = [adapter("domain", "Letters"), adapter("task", "Answers")]
    steps = [advice.Step(s.title, s.tab, i < steps_done) for i, s in enumerate(advice.path_steps([], kinds))]
    shown = advice.NextStep("Do this.", (), summary="Letters on the base embedded.", **changes)
    return guide.render_line(steps, shown)


def test_steps_and_advice_are_one_line_that_shrinks_when_all_is_done() -> None:
    open_line, done = line(4), line(5)
    assert open_line["tag"] == "section" and "Do this." in texts(open_line)
    assert [k["tag"] for k in open_line["kids"] if isinstance(k, dict)][:2] == ["ol", "p"]
    assert done["cls"] == "next done" and "Letters on the base embedded." in texts(done)
    assert "Do this." not in texts(done)


@pytest.mark.parametrize("changes", [{"share": 0.5}, {"failed": True}])
def test_the_line_stays_whole_while_something_runs_or_has_failed(changes: dict[str, Any]) -> None:
    assert "Do this." in texts(line(5, **changes))


def test_the_practice_base_is_named_as_such_and_no_other_base_is() -> None:
    note = practice_base_note(BASE)
    assert note is not None and "real English cannot" in texts(note)
    assert [k["act"] for k in note["kids"] if isinstance(k, dict) and "act" in k] == [
        {"do": "tab", "tab": "base"}
    ]
    assert practice_base_note(SimpleNamespace(name="Qwen/Qwen2.5-0.5B-Instruct")) is None
