"""require_numbers: what needs a number for every weight refuses Auto, and says what to do."""

import pytest

from core.errors import SpecError
from core.spec.export import ExportSpec
from core.spec.fixed_weights import require_numbers
from core.spec.mix import Mix


def test_numbers_alone_pass_as_they_are() -> None:
    mix = Mix(weights={"a": 0.5}, tilt={"a": 1.0})
    assert require_numbers(mix, "An export") is mix


def test_one_adapter_on_auto_is_named_with_the_remedy() -> None:
    mix = Mix(weights={"a": 0.5, "b": 1.0}, auto={"a": "soft"})
    with pytest.raises(SpecError, match="A baked adapter needs a number .* Papers is on Auto") as e:
        require_numbers(mix, "A baked adapter", {"a": "Papers", "b": "Answers"})
    assert e.value.fix == "Set it to a number first."


def test_several_adapters_on_auto_are_all_named() -> None:
    mix = Mix(weights=dict.fromkeys("abc", 1.0), auto=dict.fromkeys("abc", "hard"))
    with pytest.raises(SpecError, match="Papers, b and c are on Auto") as e:
        require_numbers(mix, "An export", {"a": "Papers"})
    assert e.value.fix == "Set them to numbers first."


def test_an_export_of_a_mix_keeps_its_numbers_and_refuses_auto() -> None:
    mix = Mix(name="Lean", weights={"a": 0.5, "b": -1.0}, tilt={"b": 1.0})
    spec = ExportSpec.of_mix(mix, name="Out", form="merged")
    assert (spec.weights, spec.tilt, spec.name, spec.form) == (mix.weights, mix.tilt, "Out", "merged")
    with pytest.raises(SpecError, match="An export needs a number"):
        ExportSpec.of_mix(Mix(weights={"a": 1.0}, auto={"a": "token"}), name="Out")
