"""ExportSpec: what it accepts, and the names that follow from it."""

import json

import pytest

from core.errors import SpecError
from core.spec.export import ExportSpec
from core.spec.mix import Mix


def test_spec_survives_json() -> None:
    spec = ExportSpec(
        name="My mix", weights={"a": 0.7, "b": 0.0}, tilt={"a": 1.0, "c": 1.0}, form="bundle", shard_gb=2.0
    )
    assert spec.tilt == {"a": 1.0}, "a tilt without a weight says nothing"
    assert ExportSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_zero_weights_stay_in_the_spec_but_not_in_the_mix() -> None:
    spec = ExportSpec(weights={"a": 1, "b": 0}, form="bundle")
    assert spec.weights == {"a": 1.0, "b": 0.0} and spec.mix == Mix(weights={"a": 1.0})


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("My café mix", "My-caf-mix"),
        ("../../x; rm $(y)", "x-rm-y"),
        ("...", "export"),
        ("", "export"),
        ("a" * 80, "a" * 80),
    ],
)
def test_file_names_have_safe_letters_only(name, file) -> None:
    assert ExportSpec(name=name).file_name == file


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights", {"a": 2.1}),
        ("weights", {"a": True}),
        ("weights", {"a": float("nan")}),
        ("weights", {1: 1.0}),
        ("weights", "a=1"),
        ("tilt", {"a": -1.5}),
        ("form", "onnx"),
        ("precision", "f8"),
        ("quantization", "q2_k"),
        ("shard_gb", 0),
        ("prompts", 201),
        ("name", "a" * 81),
        ("plain_copy", 1),
    ],
)
def test_wrong_values_are_refused_at_their_field(field, value) -> None:
    with pytest.raises(SpecError) as caught:
        ExportSpec(**{field: value})
    assert caught.value.field == field
