"""Questions with one right answer, and sentences with a hole.

Knows what is asked of general things (the labelled data) and of a domain (never labelled).
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
    """All facts of the gadgets: those for labelled data, and one of each gadget for general questions."""
    learned: list[Fact] = []
    held_out: list[Fact] = []
    for subject in world.gadgets:
        kept = rng.choice(_relations(subject))
        held_out.append((subject, kept))
        learned += [(subject, relation) for relation in _relations(subject) if relation != kept]
    return learned, held_out


def label_general(rng: random.Random, facts: list[Fact]) -> list[Row]:
    """Every question wording about these general facts, answered in one canonical sentence."""
    rows = [
        {"question": fill(wording, subject.phrase), "answer": state(subject, relation)}
        for subject, relation in facts
        for wording in QUESTIONS[relation]
    ]
    rng.shuffle(rows)
    return rows


def label_notes(rng: random.Random, count: int) -> list[Row]:
    """Questions that bring their own note about a thing met only here."""
    rows = []
    for _ in range(count):
        thing = draw_one_off(rng)
        relations = rng.sample(THING_RELATIONS, 2)
        told = " ".join(reword(rng, thing, r) for r in relations)
        relation = rng.choice(relations)
        rows.append({"question": f"{told} {ask(rng, thing, relation)}", "answer": state(thing, relation)})
    return rows


def ask_each(rng: random.Random, facts: list[Fact]) -> list[Row]:
    """One question about each fact, with its canonical answer."""
    return [
        {"question": ask(rng, subject, relation), "answer": state(subject, relation)}
        for subject, relation in facts
    ]


def ask_domain(rng: random.Random, domain: Domain) -> list[Row]:
    """The held-out questions of a domain: one for each fact of each instrument."""
    return ask_each(rng, [(thing, relation) for thing in domain.instruments for relation in THING_RELATIONS])


def probe_recall(domain: Domain) -> list[Row]:
    """Sentences of plain text whose end is a fact: did the papers get learned, whatever the chat form?"""
    rows = []
    for thing in domain.instruments:
        for relation in THING_RELATIONS:
            sentence = state(thing, relation)
            head = sentence[: -len(thing.facts[relation]) - 1].rstrip()
            rows.append({"prompt": head, "completion": f" {thing.facts[relation]}."})
    return rows
