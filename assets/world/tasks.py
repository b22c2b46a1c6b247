"""Questions with one correct answer: about general things (labelled) and about a domain (never labelled).

The recall probe is a list of cloze sentences over the facts of a domain.
"""

import random

from assets.world.domain import Domain
from assets.world.things import (
    PERSON_RELATIONS,
    QUESTIONS,
    THING_RELATIONS,
    Subject,
    World,
    ask,
    draw_one_off,
    fill,
    reword,
    state,
)

Row = dict[str, str]
Fact = tuple[Subject, str]


def _relations(subject: Subject) -> tuple[str, ...]:
    return PERSON_RELATIONS if subject.is_person else THING_RELATIONS


def split_facts(rng: random.Random, world: World) -> tuple[list[Fact], list[Fact]]:
    """Splits the facts of the gadgets: one of each is held out for general questions, the rest labelled."""
    learned: list[Fact] = []
    held_out: list[Fact] = []
    for subject in world.gadgets:
        excluded = rng.choice(_relations(subject))
        held_out.append((subject, excluded))
        learned += [(subject, relation) for relation in _relations(subject) if relation != excluded]
    return learned, held_out


def label_general(rng: random.Random, facts: list[Fact]) -> list[Row]:
    """Writes every wording of the questions about these facts, each answered in one canonical sentence."""
    rows = [
        {"question": fill(wording, subject.phrase), "answer": state(subject, relation)}
        for subject, relation in facts
        for wording in QUESTIONS[relation]
    ]
    rng.shuffle(rows)
    return rows


def label_notes(rng: random.Random, count: int) -> list[Row]:
    """Writes questions that come with a note about a thing that occurs only there."""
    rows = []
    for _ in range(count):
        thing = draw_one_off(rng)
        relations = rng.sample(THING_RELATIONS, 2)
        note = " ".join(reword(rng, thing, r) for r in relations)
        relation = rng.choice(relations)
        rows.append({"question": f"{note} {ask(rng, thing, relation)}", "answer": state(thing, relation)})
    return rows


def ask_each(rng: random.Random, facts: list[Fact]) -> list[Row]:
    """Writes one question about each fact, with its canonical answer."""
    return [
        {"question": ask(rng, subject, relation), "answer": state(subject, relation)}
        for subject, relation in facts
    ]


def ask_domain(rng: random.Random, domain: Domain) -> list[Row]:
    """Writes the held-out questions of a domain: one for each fact of each instrument."""
    return ask_each(rng, [(thing, relation) for thing in domain.instruments for relation in THING_RELATIONS])


def write_recall_probe(domain: Domain) -> list[Row]:
    """Writes plain sentences that end in a fact, to measure recall of the papers without the chat format."""
    rows = []
    for thing in domain.instruments:
        for relation in THING_RELATIONS:
            sentence = state(thing, relation)
            head = sentence[: -len(thing.facts[relation]) - 1].rstrip()
            rows.append({"prompt": head, "completion": f" {thing.facts[relation]}."})
    return rows
