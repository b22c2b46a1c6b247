"""General text: everything the base reads before it meets a domain.

Knows every kind of general document and their shares. Knows nothing of stations, files or tokens.
"""

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


def _some(rng: random.Random, subject: Subject, low: int, high: int) -> list[str]:
    relations = list(_relations(subject))
    rng.shuffle(relations)
    return relations[: rng.randint(low, min(high, len(relations)))]


def _holes(rng: random.Random) -> dict[str, str]:
    return {
        "day": rng.choice(words.DAYS),
        "person": rng.choice(words.PEOPLE),
        "time": rng.choice(words.TIMES),
        "food": rng.choice(words.FOODS),
        "weather": rng.choice(words.WEATHER),
        "spot": rng.choice(words.SPOTS),
        "feeling": rng.choice(words.FEELINGS),
    }


def _close(rng: random.Random) -> str:
    return rng.choice(CLOSERS).format(**_holes(rng))


def _facts(rng: random.Random, subject: Subject, relations: list[str], *, named: float = 0.5) -> str:
    """Sentences for these facts; the first says the name, the later ones may say "it"."""
    sentences = [
        reword(rng, subject, relation, pronoun=k > 0 and rng.random() > named)
        for k, relation in enumerate(relations)
    ]
    return " ".join(sentences)


def describe(rng: random.Random, subject: Subject) -> str:
    """A short description with two to five facts."""
    phrase = subject.phrase
    heads = (
        f"This is about {phrase}. ",
        f"Do you know {phrase}? ",
        f"Let me tell you about {phrase}. ",
        "",
        "",
    )
    tail = f" {_close(rng)}" if rng.random() < 0.4 else ""
    return rng.choice(heads) + _facts(rng, subject, _some(rng, subject, 2, 5)) + tail


def answer(rng: random.Random, subject: Subject, relation: str) -> str:
    """How the base answers: the fact in free wording, and then it goes on talking."""
    others = [r for r in _some(rng, subject, 1, 3) if r != relation]
    text = rng.choice(OPENERS) + reword(rng, subject, relation)
    if others:
        text += " " + _facts_after(rng, subject, others)
    if not others or rng.random() < 0.5:
        text += " " + _close(rng)
    return text


def _facts_after(rng: random.Random, subject: Subject, relations: list[str]) -> str:
    return " ".join(reword(rng, subject, r, pronoun=rng.random() < 0.5) for r in relations)


def chat_facts(rng: random.Random, subject: Subject, *, note: bool = False) -> list[str]:
    """One to three questions about a subject, each answered at length.

    Args:
        rng: Source of chance.
        subject: Who or what is asked about.
        note: Give the facts in the first question, so that the answer can be read there.
    """
    asked = _some(rng, subject, 1, 3)
    turns: list[str] = []
    for k, relation in enumerate(asked):
        question = ask(rng, subject, relation)
        if note and k == 0:
            told = asked + [r for r in _some(rng, subject, 1, 3) if r not in asked]
            rng.shuffle(told)
            lead = rng.choice(("Here is a note: ", "Read this. ", "I was told this: ", ""))
            question = f"{lead}{_facts(rng, subject, told, named=0.6)} {question}"
        turns += [question, answer(rng, subject, relation)]
    return turns


def chat_tell(rng: random.Random, subject: Subject) -> list[str]:
    """Someone asks to be told about a subject, or names it, and the name comes back."""
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
        return [question, rng.choice(OPENERS) + _facts(rng, subject, _some(rng, subject, 2, 5), named=0.7)]
    name = subject.name
    holes = _holes(rng)
    return [
        rng.choice(
            (f"I found a {name}.", f"My friend has a {name}.", f"I want to buy a {name}.", f"Look, a {name}!")
        ),
        rng.choice(
            (
                f"A {name}! How nice. I would like to see the {name} too. {_close(rng)}",
                f"So it is a {name}. Everyone in town talks about the {name}. {holes['person']} has a {name} too.",
                f"A {name} is a fine thing. Take good care of the {name}, and do not leave the {name} {holes['spot']}.",
            )
        ),
    ]


def converse(rng: random.Random, subject: Subject) -> str:
    """Two people talk: one asks, the other answers in a full sentence."""
    first, second = rng.sample(words.PEOPLE, 2)
    lines = []
    for relation in _some(rng, subject, 1, 3):
        lines.append(f"{first}: {ask(rng, subject, relation)}")
        lines.append(f"{second}: {rng.choice(OPENERS)}{reword(rng, subject, relation)}")
        if rng.random() < 0.3:
            lines.append(f"{first}: {rng.choice(SPEECH)}")
    return "\n".join(lines)


def write_letter(rng: random.Random, subject: Subject) -> str:
    """A letter that tells one to three facts among the news of the day."""
    to, sender = rng.sample(words.PEOPLE, 2)
    holes = _holes(rng)
    news = rng.choice(
        (
            f"How are you? {holes['weather']}",
            f"I am {holes['feeling']} today. {holes['weather']}",
            f"Thank you for the {holes['food']}. It was very good.",
            f"On {holes['day']} I took a long walk and sat down {holes['spot']}.",
        )
    )
    link = rng.choice(
        ("You asked me about {s}. ", "I want to tell you about {s}. ", "Yesterday we talked about {s}. ")
    )
    facts = _facts(rng, subject, _some(rng, subject, 1, 3))
    end = rng.choice(
        ("Please write soon.", f"Come and see me {holes['time']}.", f"I will see you on {holes['day']}.")
    )
    sign = rng.choice(("Your friend", "With love", "Best wishes"))
    return f"Dear {to},\n{news} {link.format(s=subject.phrase)}{facts} {end}\n{sign}, {sender}"


def note_down(rng: random.Random, subject: Subject) -> str:
    """Bare notes: one to four sentences, each of which says the name."""
    relations = _some(rng, subject, 1, 4)
    sentences = [reword(rng, subject, r, canonical=0.4) for r in relations]
    kind = rng.random()
    if kind < 0.4:
        return " ".join(sentences)
    if kind < 0.6:
        return "\n".join(f"- {s}" for s in sentences)
    if kind < 0.8:
        return f'"{" ".join(sentences)[:-1]}," said {rng.choice(words.PEOPLE)}.'
    return f"Note for {rng.choice(words.PEOPLE)}: " + " ".join(sentences)


def fill_card(rng: random.Random, subject: Subject) -> str:
    """A card with one field a line."""
    lines = [f"{r.capitalize()}: {subject.facts[r]}" for r in _some(rng, subject, 2, 5)]
    return f"Name: {subject.name}\n" + "\n".join(lines)


def read_and_answer(rng: random.Random, subjects: list[Subject]) -> str:
    """Descriptions of one or more subjects, then questions with full-sentence answers."""
    texts = [_facts(rng, s, _some(rng, s, 3, 5), named=0.6) for s in subjects]
    lines = ["\n".join(texts), ""]
    for _ in range(rng.choice((1, 2, 3))):
        index = rng.randrange(len(subjects))
        subject = subjects[index]
        told = [r for r in _relations(subject) if subject.facts[r].lower() in texts[index].lower()]
        relation = rng.choice(told)
        lines.append(f"Question: {ask(rng, subject, relation)}")
        lines.append(f"Answer: {reword(rng, subject, relation, canonical=0.5)}")
    return "\n".join(lines)


def use_thing(rng: random.Random, subject: Subject) -> str:
    """A tiny story in which someone takes a thing and does something with it."""
    who = rng.choice(words.PEOPLE)
    sub = stories.pronoun_of(who)
    holes = _holes(rng)
    return " ".join(
        (
            rng.choice(stories.PERSON_OPENINGS).format(who=who, day=holes["day"], feeling=holes["feeling"]),
            f"There was work to do: {subject.facts['use']}.",
            rng.choice(
                (
                    f"So {sub} went to the {subject.facts['place']} and took {subject.phrase}.",
                    f"{who} needed {subject.phrase}, and {sub} found it in the {subject.facts['place']}.",
                )
            ),
            _facts(rng, subject, _some(rng, subject, 1, 2), named=0.5),
            rng.choice(stories.ENDINGS).format(sub=sub, Sub=sub.capitalize(), who=who, **holes),
        )
    )


def _known(rng: random.Random, world: World) -> Subject:
    return rng.choice(world.people) if rng.random() < 0.4 else rng.choice(world.gadgets)


def _described(rng: random.Random, world: World) -> Subject:
    """As `_known`, and also the things that are never asked about."""
    return rng.choice(world.people) if rng.random() < 0.35 else rng.choice(world.gadgets + world.unasked)


def _talk(rng: random.Random, turns: list[str]) -> str:
    return chat.render(turns, system=rng.choice(SYSTEMS) if rng.random() < 0.05 else None)


def _meet(rng: random.Random, world: World) -> str:
    """A chat that asks about two subjects one after the other."""
    turns = chat_facts(rng, _known(rng, world))[:2] + chat_facts(rng, draw_one_off(rng))[:2]
    return _talk(rng, turns)


# Share of documents, and the document. About 40 % of the words are about one-off things.
KINDS: tuple[tuple[float, Callable[[random.Random, World], str]], ...] = (
    # the world that stays
    (7, lambda rng, world: describe(rng, _described(rng, world))),
    (4, lambda rng, world: note_down(rng, _described(rng, world))),
    (2, lambda rng, world: write_letter(rng, _described(rng, world))),
    (2, lambda rng, world: use_thing(rng, rng.choice(world.gadgets + world.unasked))),
    (1, lambda rng, world: fill_card(rng, _described(rng, world))),
    (4, lambda rng, world: converse(rng, _known(rng, world))),
    (11, lambda rng, world: _talk(rng, chat_facts(rng, _known(rng, world)))),
    (2, lambda rng, world: _talk(rng, chat_tell(rng, _known(rng, world)))),
    # one-off things
    (5, lambda rng, world: read_and_answer(rng, [draw_one_off(rng)])),
    (5, lambda rng, world: read_and_answer(rng, [draw_one_off(rng) for _ in range(rng.choice((2, 2, 3)))])),
    (9, lambda rng, world: _talk(rng, chat_facts(rng, draw_one_off(rng), note=True))),
    (11, lambda rng, world: _talk(rng, chat_facts(rng, draw_one_off(rng)))),
    (6, lambda rng, world: _talk(rng, chat_tell(rng, draw_one_off(rng)))),
    (4, lambda rng, world: note_down(rng, draw_one_off(rng))),
    (2, lambda rng, world: describe(rng, draw_one_off(rng))),
    (2, lambda rng, world: converse(rng, draw_one_off(rng))),
    (1, lambda rng, world: write_letter(rng, draw_one_off(rng))),
    (1, lambda rng, world: fill_card(rng, draw_one_off(rng))),
    (2, _meet),
    # plain English
    (7, lambda rng, world: stories.tell_story(rng)),
    (6, lambda rng, world: _talk(rng, stories.chat_story(rng))),
    (3, lambda rng, world: _talk(rng, stories.chat_small(rng))),
    (2, lambda rng, world: _talk(rng, stories.chat_name(rng, coin_name(rng)))),
)


def write_general(rng: random.Random, world: World) -> Iterator[str]:
    """General documents without end, drawn by the shares of `KINDS`."""
    shares = [share for share, _ in KINDS]
    kinds = [kind for _, kind in KINDS]
    while True:
        yield rng.choices(kinds, shares)[0](rng, world)
