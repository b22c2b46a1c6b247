"""What the page and the terminal say about gates."""

import pytest

from core.engine.gates import describe_decisions, find_gate_state, read_decisions
from core.engine.mix_names import NAME_LIMIT, format_weight, name_mix
from core.engine.mix_warnings import list_mix_warnings
from core.spec.gate import GateDecision, calibrate
from core.spec.mix import Mix
from core.store.adapters import Adapter
from core.store.gate_records import make_gate, make_note

GATE = make_gate(calibrate([0.6, 0.5, 0.7, 0.65], [0.0, -0.1, 0.05, 0.1], ["others"], "f" * 16), "Papers")


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        (GATE, ""),
        ({**GATE, "area": 0.6}, "its own prompts and others are hardly told apart"),
        ({**GATE, "base_fingerprint": "0" * 16}, "another base"),
        ({**GATE, "temperature": -1.0}, "not calibrated yet"),
        (None, "not calibrated yet"),
        ("damaged", "not calibrated yet"),
        (make_note("Its data was deleted."), "it is not calibrated: Its data was deleted"),
    ],
)
def test_a_gate_is_usable_or_says_why_not(gate, reason) -> None:
    state = find_gate_state({"gate": gate}, "f" * 16)
    assert state["usable"] is (not reason) and reason in state["reason"]


def test_while_no_base_is_loaded_a_calibration_counts() -> None:
    assert find_gate_state({"gate": GATE}, "") == {"usable": True, "reason": ""}


def test_decisions_come_back_from_a_stamp_and_name_the_adapters() -> None:
    decisions = {
        "a": GateDecision(1.0, 0.62, 0.1, 0.99),
        "b": GateDecision(0.0, 0.3, 0.1, 0.01, rival="a"),
        "c": GateDecision(0.0, obstacle="it is not calibrated"),
    }
    stamp = {"auto": {a: {**d.to_json(), "later": 1} for a, d in decisions.items()}}
    assert read_decisions(stamp) == decisions
    said = describe_decisions(decisions, {"a": "Station papers", "b": "Museum"})
    assert "0.62 nats a token likelier with Station papers" in said["a"] and said["a"].endswith(": on")
    assert "Station papers fits it better" in said["b"]
    assert said["c"] == "a deleted adapter is off: it is not calibrated"
    assert read_decisions({}) == read_decisions({"auto": "no"}) == read_decisions({"auto": {"a": 1}}) == {}


def test_the_name_of_a_mix_says_which_weights_are_on_auto() -> None:
    labels = {"a": "Notes", "b": "Answers"}
    mix = Mix(weights={"a": 1.0, "b": 1.0}, auto={"a": "hard"})
    assert name_mix(mix, labels) == "auto · Notes + Answers"
    other = Mix(weights={"a": -0.5, "b": 0.7}, tilt={"b": 1.0}, auto={"a": "hard", "b": "token"})
    assert name_mix(other, labels) == (
        "− auto, up to 0.50 · Notes + auto, each token, up to 0.70 · Answers (deep)"
    )
    assert format_weight(Mix(weights={"a": 0.5}, auto={"a": "soft"}), "a") == "auto, soft, up to 0.50"


def test_a_long_name_with_auto_keeps_its_limit_and_every_label() -> None:
    labels = {str(i): "Long name " * 9 + f"#{i}" for i in range(3)}
    mix = Mix(weights=dict.fromkeys(labels, -0.35), auto=dict.fromkeys(labels, "token"))
    name = name_mix(mix, labels)
    assert len(name) <= NAME_LIMIT and name.count("each token") == 3


def warn(mix: Mix, **metadata) -> list[str]:
    below = make_adapter("below", "Papers", "domain")
    above = make_adapter("above", "Asker", "task", stacked_on="below", metadata=metadata)
    return list_mix_warnings(mix, {"below": below, "above": above})


def make_adapter(adapter_id: str, name: str, kind: str, **more) -> Adapter:
    return Adapter(adapter_id, name, kind, "base", "f" * 16, 4, 8.0, ("q_proj",), "0" * 64, 9, 0.0, **more)


def test_a_parent_that_auto_may_switch_off_gets_a_warning() -> None:
    mix = Mix(weights={"below": 1.0, "above": 1.0}, auto={"below": "hard"})
    (said,) = warn(mix)
    assert "Auto switches Papers off" in said and "set Papers to 1" in said
    assert warn(mix, domain_dropout=0.5) == []
    assert warn(Mix(weights=mix.weights)) == []
