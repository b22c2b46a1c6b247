"""The museum: hand-written sample data in real English, without leaks between training and held-out files."""

import itertools
import json
import re
from functools import cache
from pathlib import Path

import pytest

from assets.samples import SEPARATOR
from core.data.datasets import import_dataset, read_split
from core.data.formats.readers import read_files
from core.data.samples import FOLDER, FOLDERS, Samples, find_samples
from core.errors import SpecError
from core.store.workspace import Workspace

MUSEUM = Path(__file__).resolve().parents[2] / "assets" / "museum"
FORMS = {
    "place": re.compile(r"The (?P<thing>[\w' ]+?) is kept in the (?P<value>[\w ]+)\."),
    "material": re.compile(r"The (?P<thing>[\w' ]+?) is made of (?P<value>[\w ]+)\."),
    "maker": re.compile(r"The (?P<thing>[\w' ]+?) was built by (?P<value>[\w ]+)\."),
    "use": re.compile(r"The (?P<thing>[\w' ]+?) is used for (?P<value>[\w ]+)\."),
}
TRAINING = ("task.jsonl", "general.txt")
QUESTIONS = ("task.jsonl", "heldout_questions.jsonl", "heldout_paraphrased.jsonl", "general_questions.jsonl")


def read_rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (MUSEUM / name).read_text(encoding="utf-8").splitlines()]


def read_papers() -> list[str]:
    return [text.strip() for p in find_samples("museum").domain for text in p.read_text().split(SEPARATOR)]


def split_sentences(text: str) -> list[str]:
    return re.split(r'(?<=[.?!:])\s+|\n|"', text)


@cache
def read_words(text: str) -> str:
    """The words of a text in lower case, with a blank around each."""
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "


def has_phrase(text: str, phrase: str) -> bool:
    return read_words(phrase) in read_words(text)


def read_facts() -> dict[tuple[str, str], str]:
    """(thing, relation) -> value, from the canonical answers of the held-out questions."""
    facts = {}
    for row in read_rows("heldout_questions.jsonl"):
        relation, match = next(
            (name, found) for name, form in FORMS.items() if (found := form.fullmatch(row["answer"]))
        )
        facts[match["thing"], relation] = match["value"]
    return facts


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A workspace with the museum's domain, task, held-out questions and paraphrased questions."""
    samples, workspace = find_samples("museum"), Workspace(tmp_path_factory.mktemp("museum"))
    return workspace, [
        import_dataset(workspace, samples.domain, "Museum domain", "domain"),
        import_dataset(workspace, [samples.task], "Museum task", "task"),
        import_dataset(workspace, [samples.questions_file], "Museum questions", "task"),
        import_dataset(workspace, [samples.paraphrases_file], "Museum paraphrases", "task"),
    ]


FACTS = read_facts()
THINGS = sorted({thing for thing, _ in FACTS})


def test_fifteen_things_have_four_facts_each_and_no_two_share_a_value():
    assert len(FACTS) == 60 and len(THINGS) == 15
    assert all(re.fullmatch(r"[a-z]+ [a-z]+", thing) for thing in THINGS)
    for relation in FORMS:
        assert len({FACTS[thing, relation] for thing in THINGS}) == 15


def test_the_files_have_the_sizes_that_the_readme_states():
    sizes = {p.name: p.stat().st_size for p in MUSEUM.iterdir() if p.is_file()}
    assert 30_000 <= sum(p.stat().st_size for p in (MUSEUM / "domain").iterdir()) <= 40_000
    assert 7_500 <= sizes["general.txt"] <= 8_500 and 3_500 <= sizes["general_heldout.txt"] <= 4_500
    samples, readme = Samples(MUSEUM), (MUSEUM / "README.md").read_text(encoding="utf-8")
    counts = {
        f"{len(read_papers())} short papers": 229,
        f"{len(read_rows('task.jsonl'))} questions about general things": 207,
        f"{len(samples.questions())} questions about the museum's things": 60,
        f"the same {len(samples.paraphrases())} facts": 60,
        f"{len(samples.general_questions())} short questions": 60,
        f"{len(samples.texts('general'))} short passages": 38,
        f"{len(samples.texts('general_heldout'))} passages": 19,
    }
    for phrase, count in counts.items():
        assert phrase in readme and str(count) in phrase
    assert all(thing in " ".join(readme.split()) for thing in THINGS)


def test_files_hold_plain_characters_and_no_blank_lines_between_rows():
    for path in (p for p in MUSEUM.rglob("*") if p.is_file()):
        text = path.read_text(encoding="utf-8")
        assert text.isascii() and text.endswith("\n") and "\r" not in text and "\t" not in text, path.name
        assert path.suffix != ".jsonl" or "\n\n" not in text


def test_every_answer_is_one_sentence_in_the_form_of_its_relation():
    for row in (*read_rows("heldout_questions.jsonl"), *read_rows("heldout_paraphrased.jsonl")):
        assert set(row) == {"question", "answer"}
        found = [form.fullmatch(row["answer"]) for form in FORMS.values()]
        assert sum(match is not None for match in found) == 1, row
        thing = next(match for match in found if match)["thing"]
        assert f"the {thing}" in row["question"].lower(), row


def test_the_task_teaches_the_four_forms_in_equal_parts():
    words = {"place": "is kept in", "material": "is made of", "maker": "was built by", "use": "is used for"}
    rows = read_rows("task.jsonl")
    shares = [sum(form in row["answer"] for row in rows) / len(rows) for form in words.values()]
    assert sum(shares) == pytest.approx(1.0) and all(0.2 < share < 0.3 for share in shares)
    for row in rows:
        assert set(row) == {"question", "answer"} and row["question"].endswith("?")
        assert row["answer"].endswith(".") and row["answer"].count(".") == 1 and row["answer"][0].isupper()


def test_paraphrases_ask_for_the_same_facts_in_new_words():
    held_out, other = read_rows("heldout_questions.jsonl"), read_rows("heldout_paraphrased.jsonl")
    assert sorted(row["answer"] for row in held_out) == sorted(row["answer"] for row in other)
    things = re.compile("|".join(THINGS))
    wordings = {things.sub("X", row["question"]) for row in held_out}
    assert len(wordings) == 14  # all of them are wordings of the task
    assert wordings.isdisjoint({things.sub("X", row["question"]) for row in other})
    assert len({things.sub("X", row["question"]) for row in other}) >= 55


def test_every_fact_occurs_in_eight_sentences_beside_its_thing():
    papers = read_papers()
    sentences = [sentence for paper in papers for sentence in split_sentences(paper)]
    for (thing, relation), value in FACTS.items():
        beside = [s for s in sentences if has_phrase(s, thing) and has_phrase(s, value)]
        assert len(beside) >= 8 and len({s.lower() for s in beside}) >= 6, (thing, relation)
        assert sum(has_phrase(p, thing) and has_phrase(p, value) for p in papers) >= 8, (thing, relation)


def test_the_training_split_states_every_fact_as_the_answers_do(imported):
    workspace, (domain, *_) = imported
    papers = [row["text"] for row in read_split(workspace, domain.id, "train")]
    sentences = [sentence for paper in papers for sentence in split_sentences(paper)]
    for (thing, relation), value in FACTS.items():
        assert sum(has_phrase(s, thing) and has_phrase(s, value) for s in sentences) >= 4, (thing, relation)
    text = " ".join(" ".join(sentences).split())
    for row in read_rows("heldout_questions.jsonl"):
        assert row["answer"].removesuffix(".") in text, row


def test_no_sentence_gives_a_thing_the_value_of_another_thing():
    owners = {value: thing for (thing, _), value in FACTS.items()}
    for sentence in itertools.chain.from_iterable(map(split_sentences, read_papers())):
        named = [thing for thing in THINGS if has_phrase(sentence, thing)]
        values = [value for value in owners if has_phrase(sentence, value)]
        if len(named) == 1:
            assert {owners[value] for value in values} <= set(named), sentence


def test_papers_differ_and_three_in_ten_have_no_header():
    papers = read_papers()
    assert len(set(papers)) == len(papers)
    notes = (MUSEUM / "domain" / "notes.md").read_text(encoding="utf-8").split(SEPARATOR)
    assert len(notes) >= 0.3 * len(papers)
    assert not any("Museum" in note or "\n" in note.strip() for note in notes)


def test_no_file_outside_the_domain_names_a_thing_or_its_facts():
    for name in (*TRAINING, "general_heldout.txt", "general_questions.jsonl"):
        text = (MUSEUM / name).read_text(encoding="utf-8")
        for (thing, relation), value in FACTS.items():
            assert not has_phrase(text, thing), (name, thing)
            assert relation == "material" or not has_phrase(text, value), (name, value)


def test_the_task_names_no_other_clock_and_no_value_of_the_museum():
    for row in read_rows("task.jsonl"):
        for (thing, _), value in FACTS.items():
            assert not has_phrase(f"{row['question']} {row['answer']}", thing.split()[1]), row
            assert not has_phrase(row["answer"], value), row


def test_no_question_occurs_twice_in_any_file():
    asked = [" ".join(row["question"].lower().split()) for name in QUESTIONS for row in read_rows(name)]
    assert len(asked) == 207 + 3 * 60 and len(set(asked)) == len(asked)


def test_no_training_file_states_an_answer_to_a_general_question():
    texts = "\n".join((MUSEUM / name).read_text(encoding="utf-8") for name in TRAINING) + "\n".join(
        read_papers()
    )
    sentences = split_sentences(texts)
    for row in read_rows("general_questions.jsonl"):
        subject = re.split(
            r" of | for | between | lies ", row["question"].removesuffix("?").removesuffix(" called")
        )[-1]
        value = re.split(r" is | called ", row["answer"].rstrip("."))[-1]
        assert row["answer"].count(".") == 1 and value and subject
        assert not [s for s in sentences if has_phrase(s, value) and has_phrase(s, subject)], row
        assert row["answer"] not in texts


def test_the_recall_probe_ends_the_canonical_sentence_of_every_fact():
    probe = Samples(MUSEUM).recall_probe()
    assert all(completion.startswith(" ") and not prompt.endswith(" ") for prompt, completion in probe)
    assert sorted(prompt + completion for prompt, completion in probe) == sorted(
        row["answer"] for row in read_rows("heldout_questions.jsonl")
    )


def test_passages_that_measure_forgetting_are_not_replayed():
    samples = Samples(MUSEUM)
    replayed = {s for text in samples.texts("general") for s in split_sentences(text)}
    unseen = {s for text in samples.texts("general_heldout") for s in split_sentences(text)}
    assert len(unseen) > 50 and replayed.isdisjoint(unseen)


def test_all_files_are_imported_as_the_kind_that_they_are_made_for(imported):
    workspace, datasets = imported
    domain, task, *_ = datasets
    assert [row.values["text"].strip() for row in read_files(find_samples("museum").domain)] == read_papers()
    assert [d.rows for d in datasets] == [229, 207, 60, 60]
    assert (domain.kind, domain.duplicates, domain.left_out) == ("domain", 0, 0)
    learned = [row for split in task.splits for row in read_split(workspace, task.id, split)]
    pairs = [[message["content"] for message in row["messages"]] for row in learned]
    assert sorted(pairs) == sorted([row["question"], row["answer"]] for row in read_rows("task.jsonl"))


def test_samples_are_found_by_name_and_the_station_stays_the_default():
    assert list(FOLDERS) == ["station", "museum"] and FOLDERS["station"] == FOLDER == Samples().folder
    assert find_samples("museum").folder == MUSEUM
    assert find_samples("station").paraphrases() == []
    first = find_samples("museum").questions()[0]["messages"]
    assert first[0]["content"] == "What is the moth lantern used for?"
    assert first[1]["content"] == "The moth lantern is used for drying love letters."
    with pytest.raises(SpecError) as refusal:
        find_samples("../museum")
    assert "station, museum, got '../museum'" in str(refusal.value)
