"""Specs: every field has a sentence, a default inside its limits, and refuses everything else."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError, Diverged, RunError, SpecError, StudioError
from core.spec.export import ExportSpec
from core.spec.mix import Mix, Sampling, tilt_by_depth
from core.spec.presets import PRESETS, preset_of_size, resolve
from core.spec.settings import SEED, label_of
from core.spec.training import RunStatus, TrainSpec

SPECS = (TrainSpec, Sampling, Mix, ExportSpec)
FIELDS = [(spec, f) for spec in SPECS for f in dataclasses.fields(spec)]
NUMBERS = [(spec, f) for spec, f in FIELDS if f.type in ("int", "float")]


def name_of(value):
    return getattr(value, "name", getattr(value, "__name__", str(value)))


# ------------------------------------------------------------ fields


@pytest.mark.parametrize(("spec", "f"), FIELDS, ids=name_of)
def test_every_field_has_one_sentence_and_a_label(spec, f):
    sentence = f.metadata["help"]
    assert sentence[0].isupper() or sentence[0].isdigit()
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 200
    assert label_of(f)[0].isupper() and "_" not in label_of(f)


@pytest.mark.parametrize(("spec", "f"), NUMBERS, ids=name_of)
def test_t24_every_number_has_limits_that_are_kept(spec, f):
    low, high = f.metadata["low"], f.metadata["high"]
    assert low is not None and high is not None and low <= getattr(spec(), f.name) <= high
    for value in (low, high):
        assert getattr(spec(**{f.name: value}), f.name) == value
    step = 1 if f.type == "int" else 1e-9 + abs(high) * 1e-9
    for value in (low - step, high + step):
        with pytest.raises(SpecError) as caught:
            spec(**{f.name: value})
        limits = [int(limit) if limit == int(limit) else limit for limit in (low, high)]
        between = f"must be between {limits[0]} and {limits[1]}, got ".replace("1e-07", "1e-7")
        assert (
            caught.value.what.startswith(f"{label_of(f)} {between}")
            and caught.value.fix == "Enter a value in this range."
        )


@pytest.mark.parametrize(("spec", "f"), NUMBERS, ids=name_of)
@pytest.mark.parametrize(
    "value", [None, "1", True, float("nan"), float("inf"), 10**400, [1]], ids=lambda v: str(v)[:9]
)
def test_t24_values_that_are_not_numbers_are_refused(spec, f, value):
    with pytest.raises(SpecError, match="must be a number between"):
        spec(**{f.name: value})


@pytest.mark.parametrize(("spec", "f"), [(s, f) for s, f in NUMBERS if f.type == "int"], ids=name_of)
def test_a_whole_number_stays_one(spec, f):
    low = f.metadata["low"]
    made = getattr(spec(**{f.name: float(low)}), f.name)
    assert made == low and type(made) is int
    with pytest.raises(SpecError, match="must be a whole number between"):
        spec(**{f.name: low + 0.5})


@pytest.mark.parametrize(("spec", "f"), [(s, f) for s, f in FIELDS if f.type == "str"], ids=name_of)
def test_t24_texts_have_a_length_or_a_choice(spec, f):
    with pytest.raises(SpecError):
        spec(**{f.name: "x" * 4001})
    for value in (None, 3, ["x"]):
        with pytest.raises(SpecError):
            spec(**{f.name: value})
    if choices := f.metadata["choices"]:
        with pytest.raises(SpecError, match=f"must be one of {', '.join(choices)}, got 'other'"):
            spec(**{f.name: "other"})


@pytest.mark.parametrize(
    ("spec", "f"), [(s, f) for s, f in FIELDS if f.type.startswith("tuple")], ids=name_of
)
def test_lists_of_texts_hold_texts(spec, f):
    assert getattr(spec(**{f.name: ["a", "b"]}), f.name) == ("a", "b")
    for value in ("ab", None, 3, [1], {"a": 1}):
        with pytest.raises(SpecError, match="must be a list of strings"):
            spec(**{f.name: value})
    for value in (["a"] * 513, ["x" * 4001]):
        with pytest.raises(SpecError, match="at most 512 entries of at most 4000 characters"):
            spec(**{f.name: value})


def test_specs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainSpec().rank = 2


# ------------------------------------------------------------ JSON


MADE = [
    TrainSpec(),
    TrainSpec(name="é", epochs=0.5, target_modules=("q_proj",), seed=7),
    Sampling(stop=("\n",)),
    Mix("m", {"a": 0.5}),
    Mix("m", {"a": 0.5}, {"a": -1.0}),
]


@pytest.mark.parametrize("made", MADE)
def test_a_spec_round_trips_through_json(made):
    again = type(made).from_json(json.loads(json.dumps(made.to_json())))
    assert again == made and type(again) is type(made)


@given(
    rank=st.integers(1, 256),
    rate=st.floats(1e-7, 0.1),
    epochs=st.floats(0.01, 1000),
    name=st.text(max_size=120),
)
@settings(deadline=None)
def test_every_spec_inside_the_limits_round_trips_through_json(rank, rate, epochs, name):
    made = TrainSpec(rank=rank, learning_rate=rate, epochs=epochs, name=name)
    assert TrainSpec.from_json(made.to_json()) == made


def test_unknown_settings_are_named_with_the_known_ones():
    with pytest.raises(SpecError) as caught:
        Sampling.from_json({"top_q": 1, "seed": 0})
    assert caught.value.what == "Unknown settings: top_q." and "top_p" in caught.value.fix


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_settings_that_are_not_an_object_are_refused(value):
    with pytest.raises(SpecError, match="must map names to values"):
        TrainSpec.from_json(value)


# ------------------------------------------------------------ presets


def test_every_size_of_base_has_the_preset_made_for_it() -> None:
    sizes = (0, 3_500_000, 135_000_000, 494_000_000, 3_090_000_000, 7_250_000_000, 70_000_000_000)
    names = ("standard", "standard", "100m", "0.5b", "3b", "7b", "7b")
    assert tuple(preset_of_size(n) for n in sizes) == names
    rates = [resolve("domain", name, {}).learning_rate for name in ("100m", "0.5b", "3b", "7b")]
    assert rates == sorted(rates, reverse=True), "larger bases need lower rates"


@pytest.mark.parametrize("kind", ["domain", "task"])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_is_inside_the_limits_and_changes_override_it(kind, preset):
    made = resolve(kind, preset, {})
    assert made.kind == kind
    for name, value in PRESETS[preset].settings(kind).items():
        assert getattr(made, name) == value
    assert resolve(kind, preset, {"learning_rate": 0.05, "name": "x"}).learning_rate == 0.05
    assert PRESETS[preset].help.endswith(".") and PRESETS[preset].name == preset


def test_the_standard_preset_is_the_defaults():
    assert resolve("domain", "standard", {}) == TrainSpec() and TrainSpec().seed == SEED == 20251101
    assert TrainSpec().effective_batch == 16


def test_a_presets_settings_cannot_be_changed_through_a_copy():
    PRESETS["embedded"].settings("task")["epochs"] = 99
    assert PRESETS["embedded"].settings("task")["epochs"] != 99


@pytest.mark.parametrize(
    ("kind", "preset", "changes", "said"),
    [
        (
            "domain",
            "fast",
            {},
            "Preset must be one of standard, gentle, embedded, 100m, 0.5b, 3b, 7b, mistral-7b-qlora, "
            "dialogpt, got 'fast'.",
        ),
        ("poem", "standard", {}, "Kind must be one of domain, task, got 'poem'."),
        ("task", "standard", {"rank": 0}, "Rank must be between 1 and 256, got 0."),
        ("task", "standard", {"lr": 1}, "Unknown settings: lr."),
    ],
)
def test_unknown_presets_kinds_and_settings_are_refused(kind, preset, changes, said):
    with pytest.raises(SpecError) as caught:
        resolve(kind, preset, changes)
    assert said in str(caught.value)


# ------------------------------------------------------------ mixes


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("", {}),
        ("base", {}),
        (" ", {}),
        ("a", {"a": 1.0}),
        ("a=0.7,b=1", {"a": 0.7, "b": 1.0}),
        (" a = 0.7 + b ", {"a": 0.7, "b": 1.0}),
        ("a=-2", {"a": -2.0}),
        ("a=0,b=1e-3", {"b": 0.001}),
        ("a@1", {"a": 1.0}),
    ],
)
def test_a_mix_is_parsed_from_text(text, weights):
    assert Mix.parse(text).weights == weights


@pytest.mark.parametrize(
    "text", [",", "=1", "a=x", "a,", "a=", "a=1=2", "a=1,a=2", "a=nan", "a=2.01", "a=inf", "a=-3", "a=+1"]
)
@pytest.mark.parametrize("lean", ["", "@1"])
def test_a_text_that_is_not_a_mix_is_refused_with_and_without_tilts(text, lean):
    with pytest.raises(SpecError):
        Mix.parse(text + lean)


@pytest.mark.parametrize("text", ["a@", "a@x", "a=1@1.1", "a=1@-2", "a@nan", "@1", "a@1,a@0", "a@1@1"])
def test_a_text_that_is_not_a_mix_is_refused(text):
    with pytest.raises(SpecError):
        Mix.parse(text)


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 2.1},
        {"a": None},
        {"a": True},
        {"a": "1"},
        {"a": float("nan")},
        {"a": 10**400},
        {1: 1.0},
        None,
        [("a", 1)],
        "a",
    ],
)
def test_t24_weights_outside_the_limits_are_refused(weights):
    with pytest.raises(SpecError):
        Mix(weights=weights)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9][a-z0-9-]{0,10}", fullmatch=True),
        st.integers(-40, 40).map(lambda n: n / 20),
        max_size=5,
    )
)
@settings(deadline=None)
def test_a_mix_round_trips_through_text_and_zero_is_off(weights):
    mix = Mix(weights=weights)
    assert mix.weights == {a: w for a, w in weights.items() if w}
    if set(mix.weights) != {"base"}:
        assert Mix.parse(str(mix)).weights == mix.weights


@pytest.mark.parametrize(
    ("text", "weights", "tilt"),
    [
        ("domain=0.7@1,task=1@-0.5", {"domain": 0.7, "task": 1.0}, {"domain": 1.0, "task": -0.5}),
        (" a = -2 @ 0.25 + b", {"a": -2.0, "b": 1.0}, {"a": 0.25}),
        ("a@0,b=0@1", {"a": 1.0}, {}),
    ],
)
def test_a_tilt_is_parsed_after_an_at_sign(text, weights, tilt):
    mix = Mix.parse(text)
    assert (mix.weights, mix.tilt) == (weights, tilt) and Mix.parse(str(mix)) == mix == Mix.from_json(
        mix.to_json()
    )


@given(
    st.dictionaries(
        st.from_regex(r"x[a-z0-9-]{0,10}", fullmatch=True),
        st.tuples(st.floats(-2, 2), st.floats(-1, 1)),
        max_size=5,
    )
)
@settings(deadline=None)
def test_every_mix_with_tilts_round_trips_through_text(numbers):
    mix = Mix(weights={a: w for a, (w, _) in numbers.items()}, tilt={a: t for a, (_, t) in numbers.items()})
    assert set(mix.tilt) <= set(mix.weights) and all(mix.tilt.values())
    assert Mix.parse(str(mix)) == mix == Mix.from_json(json.loads(json.dumps(mix.to_json())))


@pytest.mark.parametrize(
    "tilt", [{"a": 1.1}, {"a": None}, {"a": True}, {"a": "1"}, {"a": float("nan")}, {1: 1.0}, None, "a"]
)
def test_t24_tilts_outside_the_limits_are_refused(tilt):
    with pytest.raises(SpecError, match="tilt"):
        Mix(weights={"a": 1.0}, tilt=tilt)


def test_tilt_by_depth_keeps_the_mean_of_every_weight():
    mix = tilt_by_depth("domain", "task")
    assert mix.name == "Domain deep, task shallow" and str(mix) == "domain@1 + task@-1"


def test_the_empty_mix_is_the_base():
    assert str(Mix()) == "base" == str(Mix(weights={"a": 0}))


# ------------------------------------------------------------ states and errors


def test_only_queued_running_and_stopping_runs_are_alive():
    assert {s.value for s in RunStatus if s.is_alive} == {"queued", "running", "stopping"}


def test_every_status_has_an_explanation_and_a_next_step():
    for status in RunStatus:
        for text in (status.explanation, status.next_step):
            assert text[0].isupper() and text.endswith(".") and text.count(". ") == 0 and len(text) > 12, (
                status,
                text,
            )
    assert len({s.explanation for s in RunStatus}) == len(RunStatus) == 11


def test_an_error_says_where_what_and_how_to_fix_it():
    error = DataError("it is empty.", "Fill it.", file="a.txt", line=3)
    assert str(error) == "a.txt, line 3: it is empty. Fill it."
    assert (error.what, error.fix, error.file, error.line) == (
        "a.txt, line 3: it is empty.",
        "Fill it.",
        "a.txt",
        3,
    )
    assert str(DataError("Nothing.")) == "Nothing." and str(DataError("x.", file="a")) == "a: x."


def test_one_except_catches_every_error_of_the_tree():
    import core.errors as room

    tree = [c for c in vars(room).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert (
        len(tree) >= 11 and all(issubclass(c, StudioError) for c in tree) and issubclass(Diverged, RunError)
    )
    assert all(c.__doc__ and c.__name__ in (room.__doc__ or "") for c in tree)
