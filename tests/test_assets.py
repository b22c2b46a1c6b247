"""The invented world, its sample files and the embedded base match their documentation."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest

from assets.samples import SEPARATOR, build_sample
from assets.world import chat, words
from assets.world.domain import SHIPPED_SEED, draw_domain, write_papers
from assets.world.general import write_general
from assets.world.tasks import ask_domain, label_notes, split_facts, write_recall_probe
from assets.world.things import THING_RELATIONS, build_world, state

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BASE = ASSETS / "embedded-base"
SAMPLE = ASSETS / "sample"
FRESH_SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(BASE, trust_remote_code=False)


@pytest.fixture(scope="module")
def base():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(
        BASE, dtype=torch.float32, trust_remote_code=False
    ).eval()


def _general(seed: int, count: int) -> list[str]:
    return list(itertools.islice(write_general(random.Random(seed), build_world()), count))


def test_general_text_is_a_function_of_its_seed():
    assert _general(3, 50) == _general(3, 50)
    assert _general(3, 50) != _general(4, 50)


def test_every_domain_seed_gives_other_instruments_and_facts():
    domains = [draw_domain(seed) for seed in (SHIPPED_SEED, *FRESH_SEEDS)]
    assert domains[0] == draw_domain(SHIPPED_SEED)
    names = [thing.name for domain in domains for thing in domain.instruments]
    assert len(set(names)) > 0.8 * len(names)
    for domain in domains:
        assert len(domain.instruments) == 12
        for relation in THING_RELATIONS:
            assert len({thing.facts[relation] for thing in domain.instruments}) == 12


def test_general_text_never_names_an_instrument():
    tokens = re.findall(r"\w+", "\n".join(_general(11, 4000)))
    pairs = {f"{first} {second}" for first, second in itertools.pairwise(tokens)}
    reserved = words.list_names(reserved=True)
    assert len(reserved) > 400
    assert pairs.isdisjoint(reserved)
    assert pairs & set(words.list_names(reserved=False))


def test_subjects_of_held_out_questions_are_not_in_the_labelled_data():
    labelled = (SAMPLE / "task.jsonl").read_text(encoding="utf-8")
    for seed in (SHIPPED_SEED, *FRESH_SEEDS):
        for thing in draw_domain(seed).instruments:
            assert thing.name not in labelled
    questions = [
        row["question"]
        for row in map(json.loads, (SAMPLE / "heldout_questions.jsonl").read_text().splitlines())
    ]
    assert len(questions) == 60
    for thing in draw_domain(SHIPPED_SEED).instruments:
        assert sum(thing.name in question for question in questions) == 5


def test_general_questions_ask_for_facts_that_the_task_leaves_out():
    learned, held_out = split_facts(random.Random("task-facts"), build_world())
    answers = {
        json.loads(line)["answer"]
        for line in (SAMPLE / "task.jsonl").read_text(encoding="utf-8").splitlines()
    }
    assert len(held_out) == 56
    assert len(learned) == 56 * 4
    assert not [fact for fact in held_out if state(*fact) in answers]
    assert all(state(*fact) in answers for fact in learned)


def test_the_papers_state_every_fact_in_several_wordings():
    domain = draw_domain(SHIPPED_SEED)
    papers = write_papers(random.Random("papers-0"), domain)
    assert len(papers) == 12 * 40
    for thing in domain.instruments:
        for relation in THING_RELATIONS:
            value = thing.facts[relation].lower()
            sentences = {
                sentence
                for paper in papers
                if thing.name in paper.text
                for sentence in paper.text.replace("\n", ". ").split(". ")
                if value in sentence.lower()
            }
            assert len(sentences) >= 6, (thing.name, relation)


def test_three_eighths_of_the_papers_are_notes_and_quotes_without_a_header():
    papers = write_papers(random.Random(0), draw_domain(1))
    assert sum(paper.category == "notes" for paper in papers) == len(papers) * 3 // 8
    assert not any("Station" in paper.text for paper in papers if paper.category == "notes")


def test_an_answer_is_one_sentence_and_a_cloze_ends_in_a_fact():
    for row in label_notes(random.Random(5), 200):
        assert row["answer"].endswith(".") and row["answer"].count(".") == 1
    for row in ask_domain(random.Random(5), draw_domain(2)):
        assert row["answer"].endswith(".") and row["answer"].count(".") == 1
    for row in write_recall_probe(draw_domain(2)):
        assert not row["prompt"].endswith(" ") and row["completion"].startswith(" ")


def test_the_sample_files_are_what_the_generator_writes():
    expected = build_sample(SHIPPED_SEED)
    names = {path.relative_to(SAMPLE).as_posix() for path in SAMPLE.rglob("*") if path.is_file()}
    assert names == set(expected)
    for name, content in expected.items():
        assert (SAMPLE / name).read_text(encoding="utf-8") == content, name


def test_the_separator_splits_the_files_into_all_papers():
    texts = [
        text
        for path in (SAMPLE / "domain").iterdir()
        for text in path.read_text(encoding="utf-8").split(SEPARATOR)
    ]
    assert len(texts) == 12 * 40


def test_everything_that_ships_fits_in_sixteen_megabytes():
    assert sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) <= 16_000_000


def test_the_tokenizer_round_trips_any_text(tokenizer):
    for text in (
        "The winter compass is kept.",
        "Grüße, naïve café — 你好 🙂\n\ttabs  and   spaces",
        "x" * 300,
        "",
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_chat_template_renders_the_format_of_pre_training(tokenizer):
    turns = ["Where is the moon bell kept?", "The moon bell is kept in the old barn."]
    messages = [
        {"role": role, "content": turn} for role, turn in zip(("user", "assistant"), turns, strict=True)
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == chat.render(turns)
    opened = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert opened == chat.render(turns[:1]) + chat.ASSISTANT
    assert chat.render(turns).startswith(opened)


def test_the_base_answers_greedily_and_stops(base, tokenizer):
    opened = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Tell me a story about a fox."}],
        tokenize=False,
        add_generation_prompt=True,
    )
    prompt = tokenizer(opened, return_tensors="pt", add_special_tokens=False)
    written = base.generate(**prompt, max_new_tokens=200, do_sample=False)[
        0, prompt["input_ids"].shape[1] :
    ].tolist()
    assert written[-1] in base.generation_config.eos_token_id
    text = tokenizer.decode(written, skip_special_tokens=True)
    assert "fox" in text and len(text.split()) > 20


def test_the_base_knows_its_own_world(base, tokenizer):
    """The base recalls facts of its world in free sentences, so the weights are the trained ones."""
    known = 0
    people = build_world().people[:10]
    for person in people:
        opened = chat.render([f"Where does {person.name} live?"]) + chat.ASSISTANT
        prompt = tokenizer(opened, return_tensors="pt", add_special_tokens=False)
        written = base.generate(**prompt, max_new_tokens=60, do_sample=False)[0]
        known += person.facts["home"] in tokenizer.decode(written)
    assert known >= 8
