"""Prompts to try: from the user's own held-out data, the sample's only for the sample's adapters."""

from __future__ import annotations

import dataclasses
import json

import pytest

from core.engine import Engine
from studio import prompt_chips, samples
from studio.tabs import suggestions
from tests.browser.conftest import small_samples
from tests.conftest import SENTENCES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory):
    """Own texts and questions, a file that is kept apart, the sample, and four adapters on these sets."""
    folder = tmp_path_factory.mktemp("files")
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), quantization="none", device="cpu") as made:
        made.samples = small_samples(tmp_path_factory.mktemp("samples"))
        (folder / "notes.txt").write_text("\n\n---\n\n".join(f"{s} {s}" for s in SENTENCES[:40]))
        for name, word in (("own", "Where"), ("apart", "Why")):
            rows = [{"question": f"{word} is {s}", "answer": s} for s in SENTENCES[:40]]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        made.datasets.import_files([folder / "notes.txt"], "Own notes", "domain")
        made.datasets.import_files([folder / "own.jsonl"], "Own questions", "task")
        samples.import_samples(made)
        for kind, name in (
            ("domain", "Own notes"),
            ("task", "Own questions"),
            ("domain", "Sample domain"),
            ("task", "Sample task"),
        ):
            data = next(d.id for d in made.datasets.list() if d.name == name)
            spec = dataclasses.replace(
                suggestions.suggest_run(made, kind),
                dataset=data,
                name=name,
                stack_on="",
                max_steps=1,
                batch_size=2,
                accumulation=1,
                max_length=64,
                rank=2,
            )
            made.runs.wait(made.runs.start(spec), 600)
        made.apart = folder / "apart.jsonl"
        yield made


def adapter(engine, name):
    return next(a.id for a in engine.library.adapters() if a.name == name)


def held_out(engine, name):
    data = next(d for d in engine.datasets.list() if d.name == name)
    return [r["messages"][0]["content"] for r in engine.datasets.rows(data.id, "test")]


def test_a_task_adapter_offers_questions_of_its_own_test_split(engine):
    chips = prompt_chips.list_chips(engine, [adapter(engine, "Own notes"), adapter(engine, "Own questions")])
    assert len({c.text for c in chips}) == prompt_chips.LIMIT
    assert {c.text for c in chips} <= set(held_out(engine, "Own questions"))
    assert {(c.continue_text, c.dataset) for c in chips} == {(False, "Own questions")}


def test_a_domain_adapter_offers_beginnings_of_held_out_texts(engine):
    chips = prompt_chips.list_chips(engine, [adapter(engine, "Own notes")])
    data = next(d for d in engine.datasets.list() if d.name == "Own notes")
    texts = [r["text"] for r in engine.datasets.rows(data.id, "test")]
    assert chips and all(c.continue_text for c in chips)
    for chip in chips:
        (whole, *_) = (t for t in texts if t.startswith(chip.text))
        assert whole[len(chip.text)].isspace(), "it ends with a whole word"
        assert prompt_chips.SHORT <= len(chip.text) <= prompt_chips.LONG < len(whole) * 2


def test_the_sample_s_questions_belong_to_the_sample_s_adapters(engine):
    sampled = prompt_chips.list_chips(engine, [adapter(engine, "Sample task")])
    assert {c.dataset for c in sampled} == {samples.NAMES["questions"]}
    own = prompt_chips.list_chips(engine, [adapter(engine, "Own questions")])
    assert "Own questions" in {c.dataset for c in own} and not any("Sample" in c.dataset for c in own)
    both = prompt_chips.list_chips(engine, [adapter(engine, "Sample task"), adapter(engine, "Own questions")])
    assert both[0].dataset == "Own questions", "the user's own come first"


def test_data_that_is_kept_apart_comes_first_but_not_for_the_sample(engine):
    kept = engine.datasets.import_files([engine.apart], "Kept apart", "task", purpose="evaluation")
    try:
        chips = prompt_chips.list_chips(engine, [adapter(engine, "Own questions")])
        assert {c.dataset for c in chips} == {"Kept apart"} and chips[0].text.startswith("Why is")
        sampled = prompt_chips.list_chips(engine, [adapter(engine, "Sample task")])
        assert {c.dataset for c in sampled} == {samples.NAMES["questions"]}
        texts = prompt_chips.list_chips(engine, [adapter(engine, "Own notes")])
        assert {c.dataset for c in texts} == {"Own notes"}
    finally:
        engine.library.delete("datasets", kept.id)
    chips = prompt_chips.list_chips(engine, [adapter(engine, "Own questions")])
    assert {c.dataset for c in chips} == {"Own questions"}


def test_the_prompt_is_a_text_when_only_domain_adapters_are_on(engine):
    notes, questions = adapter(engine, "Own notes"), adapter(engine, "Own questions")
    suggest = prompt_chips.suggest_mode
    assert suggest(engine, [notes]) and suggest(engine, [notes, adapter(engine, "Sample domain")])
    assert not suggest(engine, [notes, questions]) and not suggest(engine, [])
    assert not suggest(engine, ["elsewhere"])


@pytest.mark.parametrize(
    "text", ["", "Short.", "one two three four five", "wordwithoutanyblankinitatallthatgoesonandonandon" * 3]
)
def test_a_text_without_a_beginning_gives_none(text):
    assert prompt_chips.begin_text(text) == ""


def test_chips_are_buttons_with_whole_prompts_behind_short_labels():
    chips = [prompt_chips.Chip("Where\nis " + "the lamp " * 20, False, "Data")]
    tree = prompt_chips.render_chips(chips)
    button = tree["kids"][1]
    assert len(button["kids"][0]) <= prompt_chips.LABEL_LENGTH and "\n" not in button["kids"][0]
    assert button["act"] == {"prompt": chips[0].text, "continue_text": False}
    assert prompt_chips.render_chips([]) is None
