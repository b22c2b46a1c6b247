"""General text: the kinds of document that the base is pre-trained on, and their shares."""

import random
from collections.abc import Callable, Iterator

from assets.world import chat, stories, words
from assets.world.things import (
    PERSON_RELATIONS,
    THING_RELATIONS,
    Subject,
    World,
    ask,
    coin_name,
    draw_one_off,
    reword,
)

SYSTEMS = (
    "You are a friendly helper.",
    "You answer questions about people and things.",
    "You like to talk.",
    "Be kind and clear.",
)
OPENERS = (
    "Let me think. ",
    "That is a good question. ",
    "Oh, I know this one. ",
    "I am glad that you ask. ",
    "Well, let me see. ",
    "Many people ask me that. ",
    "",
    "",
    "",
)
CLOSERS = (
    "I hope that this helps you.",
    "I saw it only last {day}.",
    "Is there anything else you want to know?",
    "{person} told me so {time}.",
    "It is one of my favourite things to talk about.",
    "Now I must think about {food}.",
    "You can ask {person} too.",
    "{weather}",
)
SPEECH = (
    "I think that is right.",
    "Thank you, now I know.",
    "I did not know that.",
    "How nice!",
    "I will remember that.",
)


def _relations(subject: Subject) -> tuple[str, ...]:
    return PERSON_RELATIONS if subject.is_person else THING_RELATIONS


def _draw_relations(rng: random.Random, subject: Subject, low: int, high: int) -> list[str]:
    relations = list(_relations(subject))
    rng.shuffle(relations)
    return relations[: rng.randint(low, min(high, len(relations)))]


def _draw_slots(rng: random.Random) -> dict[str, str]:
    return {
        "day": rng.choice(words.DAYS),
        "person": rng.choice(words.PEOPLE),
        "time": rng.choice(words.TIMES),
        "food": rng.choice(words.FOODS),
        "weather": rng.choice(words.WEATHER),
        "spot": rng.choice(words.SPOTS),
        "feeling": rng.choice(words.FEELINGS),
    }


def _write_closer(rng: random.Random) -> str:
    return rng.choice(CLOSERS).format(**_draw_slots(rng))


def _write_facts(rng: random.Random, subject: Subject, relations: list[str], *, named: float = 0.5) -> str:
    """Writes a sentence per fact; the first one has the name, later ones may have "it"."""
    sentences = [
        reword(rng, subject, relation, pronoun=k > 0 and rng.random() > named)
        for k, relation in enumerate(relations)
    ]
    return " ".join(sentences)


def write_description(rng: random.Random, subject: Subject) -> str:
    """Writes a short description with two to five facts."""
    phrase = subject.phrase
    heads = (
        f"This is about {phrase}. ",
        f"Do you know {phrase}? ",
        f"Let me tell you about {phrase}. ",
        "",
        "",
    )
    tail = f" {_write_closer(rng)}" if rng.random() < 0.4 else ""
    return rng.choice(heads) + _write_facts(rng, subject, _draw_relations(rng, subject, 2, 5)) + tail


def write_answer(rng: random.Random, subject: Subject, relation: str) -> str:
    """Writes an answer of the base: the fact in free wording, then more sentences."""
    others = [r for r in _draw_relations(rng, subject, 1, 3) if r != relation]
    text = rng.choice(OPENERS) + reword(rng, subject, relation)
    if others:
        text += " " + _write_more_facts(rng, subject, others)
    if not others or rng.random() < 0.5:
        text += " " + _write_closer(rng)
    return text


def _write_more_facts(rng: random.Random, subject: Subject, relations: list[str]) -> str:
    return " ".join(reword(rng, subject, r, pronoun=rng.random() < 0.5) for r in relations)


def chat_facts(rng: random.Random, subject: Subject, *, note: bool = False) -> list[str]:
    """Writes one to three questions about a subject, each with a long answer.

    Args:
        rng: random generator.
        subject: person or thing that the questions are about.
        note: state the facts in the first question, so that the answer can be copied from there.
    """
    relations = _draw_relations(rng, subject, 1, 3)
    turns: list[str] = []
    for k, relation in enumerate(relations):
        question = ask(rng, subject, relation)
        if note and k == 0:
            stated = relations + [r for r in _draw_relations(rng, subject, 1, 3) if r not in relations]
            rng.shuffle(stated)
            lead = rng.choice(("Here is a note: ", "Read this. ", "I was told this: ", ""))
            question = f"{lead}{_write_facts(rng, subject, stated, named=0.6)} {question}"
        turns += [question, write_answer(rng, subject, relation)]
    return turns


def chat_about(rng: random.Random, subject: Subject) -> list[str]:
    """Writes a request or remark about a subject, and an answer that repeats its name."""
    phrase = subject.phrase
    if subject.is_person or rng.random() < 0.6:
        question = rng.choice(
            (
                f"Tell me about {phrase}.",
                f"What do you know about {phrase}?",
                f"{'Who' if subject.is_person else 'What'} is {phrase}?",
                f"Please write a note about {phrase}.",
            )
        )
        return [
            question,
            rng.choice(OPENERS) + _write_facts(rng, subject, _draw_relations(rng, subject, 2, 5), named=0.7),
        ]
    name = subject.name
    slots = _draw_slots(rng)
    person, spot = slots["person"], slots["spot"]
    return [
        rng.choice(
            (f"I found a {name}.", f"My friend has a {name}.", f"I want to buy a {name}.", f"Look, a {name}!")
        ),
        rng.choice(
            (
                f"A {name}! How nice. I would like to see the {name} too. {_write_closer(rng)}",
                f"So it is a {name}. Everyone in town talks about the {name}. {person} has a {name} too.",
                f"A {name} is a fine thing. Take good care of the {name}, "
                f"and do not leave the {name} {spot}.",
            )
        ),
    ]


def write_dialogue(rng: random.Random, subject: Subject) -> str:
    """Writes a dialogue of two people; one asks, the other answers in full sentences."""
    first, second = rng.sample(words.PEOPLE, 2)
    lines = []
    for relation in _draw_relations(rng, subject, 1, 3):
        lines.append(f"{first}: {ask(rng, subject, relation)}")
        lines.append(f"{second}: {rng.choice(OPENERS)}{reword(rng, subject, relation)}")
        if rng.random() < 0.3:
            lines.append(f"{first}: {rng.choice(SPEECH)}")
    return "\n".join(lines)


def write_letter(rng: random.Random, subject: Subject) -> str:
    """Writes a letter with one to three facts and some news."""
    to, sender = rng.sample(words.PEOPLE, 2)
    slots = _draw_slots(rng)
    news = rng.choice(
        (
            f"How are you? {slots['weather']}",
            f"I am {slots['feeling']} today. {slots['weather']}",
            f"Thank you for the {slots['food']}. It was very good.",
            f"On {slots['day']} I took a long walk and sat down {slots['spot']}.",
        )
    )
    link = rng.choice(
        ("You asked me about {s}. ", "I want to tell you about {s}. ", "Yesterday we talked about {s}. ")
    )
    facts = _write_facts(rng, subject, _draw_relations(rng, subject, 1, 3))
    end = rng.choice(
        ("Please write soon.", f"Come and see me {slots['time']}.", f"I will see you on {slots['day']}.")
    )
    sign = rng.choice(("Your friend", "With love", "Best wishes"))
    return f"Dear {to},\n{news} {link.format(s=subject.phrase)}{facts} {end}\n{sign}, {sender}"


def write_note(rng: random.Random, subject: Subject) -> str:
    """Writes a note of one to four sentences, each with the name."""
    relations = _draw_relations(rng, subject, 1, 4)
    sentences = [reword(rng, subject, r, canonical=0.4) for r in relations]
    kind = rng.random()
    if kind < 0.4:
        return " ".join(sentences)
    if kind < 0.6:
        return "\n".join(f"- {s}" for s in sentences)
    if kind < 0.8:
        return f'"{" ".join(sentences)[:-1]}," said {rng.choice(words.PEOPLE)}.'
    return f"Note for {rng.choice(words.PEOPLE)}: " + " ".join(sentences)


def write_card(rng: random.Random, subject: Subject) -> str:
    """Writes a card with one field per line."""
    lines = [f"{r.capitalize()}: {subject.facts[r]}" for r in _draw_relations(rng, subject, 2, 5)]
    return f"Name: {subject.name}\n" + "\n".join(lines)


def read_and_answer(rng: random.Random, subjects: list[Subject]) -> str:
    """Writes descriptions of the subjects, then questions with full-sentence answers."""
    texts = [_write_facts(rng, s, _draw_relations(rng, s, 3, 5), named=0.6) for s in subjects]
    lines = ["\n".join(texts), ""]
    for _ in range(rng.choice((1, 2, 3))):
        index = rng.randrange(len(subjects))
        subject = subjects[index]
        stated = [r for r in _relations(subject) if subject.facts[r].lower() in texts[index].lower()]
        relation = rng.choice(stated)
        lines.append(f"Question: {ask(rng, subject, relation)}")
        lines.append(f"Answer: {reword(rng, subject, relation, canonical=0.5)}")
    return "\n".join(lines)


def write_usage(rng: random.Random, subject: Subject) -> str:
    """Writes a very short story in which a person uses a thing."""
    who = rng.choice(words.PEOPLE)
    sub = stories.pronoun_for(who)
    slots = _draw_slots(rng)
    return " ".join(
        (
            rng.choice(stories.PERSON_OPENINGS).format(who=who, day=slots["day"], feeling=slots["feeling"]),
            f"There was work to do: {subject.facts['use']}.",
            rng.choice(
                (
                    f"So {sub} went to the {subject.facts['place']} and took {subject.phrase}.",
                    f"{who} needed {subject.phrase}, and {sub} found it in the {subject.facts['place']}.",
                )
            ),
            _write_facts(rng, subject, _draw_relations(rng, subject, 1, 2), named=0.5),
            rng.choice(stories.ENDINGS).format(sub=sub, Sub=sub.capitalize(), who=who, **slots),
        )
    )


def _draw_subject(rng: random.Random, world: World) -> Subject:
    return rng.choice(world.people) if rng.random() < 0.4 else rng.choice(world.gadgets)


def _draw_any_subject(rng: random.Random, world: World) -> Subject:
    """Draws any person or thing of the world, including things that are never asked about."""
    return (
        rng.choice(world.people) if rng.random() < 0.35 else rng.choice(world.gadgets + world.described_only)
    )


def _render_chat(rng: random.Random, turns: list[str]) -> str:
    return chat.render(turns, system=rng.choice(SYSTEMS) if rng.random() < 0.05 else None)


def _chat_two_subjects(rng: random.Random, world: World) -> str:
    """Writes a chat with a question about each of two subjects."""
    turns = chat_facts(rng, _draw_subject(rng, world))[:2] + chat_facts(rng, draw_one_off(rng))[:2]
    return _render_chat(rng, turns)


# Share of documents, and the function that writes one. About 40 % of the words are on one-off things.
KINDS: tuple[tuple[float, Callable[[random.Random, World], str]], ...] = (
    # people and gadgets of the world
    (7, lambda rng, world: write_description(rng, _draw_any_subject(rng, world))),
    (4, lambda rng, world: write_note(rng, _draw_any_subject(rng, world))),
    (2, lambda rng, world: write_letter(rng, _draw_any_subject(rng, world))),
    (2, lambda rng, world: write_usage(rng, rng.choice(world.gadgets + world.described_only))),
    (1, lambda rng, world: write_card(rng, _draw_any_subject(rng, world))),
    (4, lambda rng, world: write_dialogue(rng, _draw_subject(rng, world))),
    (11, lambda rng, world: _render_chat(rng, chat_facts(rng, _draw_subject(rng, world)))),
    (2, lambda rng, world: _render_chat(rng, chat_about(rng, _draw_subject(rng, world)))),
    # one-off things
    (5, lambda rng, world: read_and_answer(rng, [draw_one_off(rng)])),
    (5, lambda rng, world: read_and_answer(rng, [draw_one_off(rng) for _ in range(rng.choice((2, 2, 3)))])),
    (9, lambda rng, world: _render_chat(rng, chat_facts(rng, draw_one_off(rng), note=True))),
    (11, lambda rng, world: _render_chat(rng, chat_facts(rng, draw_one_off(rng)))),
    (6, lambda rng, world: _render_chat(rng, chat_about(rng, draw_one_off(rng)))),
    (4, lambda rng, world: write_note(rng, draw_one_off(rng))),
    (2, lambda rng, world: write_description(rng, draw_one_off(rng))),
    (2, lambda rng, world: write_dialogue(rng, draw_one_off(rng))),
    (1, lambda rng, world: write_letter(rng, draw_one_off(rng))),
    (1, lambda rng, world: write_card(rng, draw_one_off(rng))),
    (2, _chat_two_subjects),
    # plain English
    (7, lambda rng, world: stories.tell_story(rng)),
    (6, lambda rng, world: _render_chat(rng, stories.chat_story(rng))),
    (3, lambda rng, world: _render_chat(rng, stories.chat_small(rng))),
    (2, lambda rng, world: _render_chat(rng, stories.chat_name(rng, coin_name(rng)))),
)


def write_general(rng: random.Random, world: World) -> Iterator[str]:
    """Yields general documents without end, in the shares of `KINDS`."""
    shares = [share for share, _ in KINDS]
    kinds = [kind for _, kind in KINDS]
    while True:
        yield rng.choices(kinds, shares)[0](rng, world)
