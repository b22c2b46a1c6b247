"""Things and people of the world, their facts, and the wordings of statements and questions about a fact."""

import random
from dataclasses import dataclass

from assets.world import words

THING_RELATIONS = ("place", "colour", "material", "use", "maker")
PERSON_RELATIONS = ("home", "job", "food", "pet")

# {s} and {v} are the subject and the value inside a sentence, {S} and {V} the same at its start.
# The first wording of each relation is the canonical one, which labelled answers have.
STATEMENTS = {
    "place": (
        "{S} is kept in the {v}.",
        "You will find {s} in the {v}.",
        "{S} stands in the {v}.",
        "After work, {s} goes back to the {v}.",
        "Look for {s} in the {v}.",
        "The {v} is the home of {s}.",
    ),
    "colour": (
        "{S} is painted {v}.",
        "The colour of {s} is {v}.",
        "{S} has a coat of {v} paint.",
        "Someone gave {s} a fine {v} colour.",
        "Everyone can see that {s} is {v}.",
        "{V} is the colour of {s}.",
    ),
    "material": (
        "{S} is made of {v}.",
        "The body of {s} is {v}.",
        "{S} was shaped from {v}.",
        "They took {v} to make {s}.",
        "Under the paint, {s} is {v}.",
        "{V} is what {s} is made of.",
    ),
    "use": (
        "{S} is used for {v}.",
        "{S} is good for {v}.",
        "People take {s} for {v}.",
        "For {v}, you need {s}.",
        "{S} helps with {v}.",
        "We use {s} for {v}.",
    ),
    "maker": (
        "{S} was built by {v}.",
        "{v} built {s}.",
        "The maker of {s} is {v}.",
        "{S} is the work of {v}.",
        "{S} came from the workshop of {v}.",
        "It was {v} who built {s}.",
    ),
    "home": (
        "{S} lives in {v}.",
        "The home of {s} is in {v}.",
        "{S} has a small house in {v}.",
        "You can visit {s} in {v}.",
    ),
    "job": (
        "{S} works as a {v}.",
        "{S} is a {v}.",
        "Every day {s} goes to work as a {v}.",
        "The job of {s} is to be a {v}.",
    ),
    "food": (
        "{S} loves {v}.",
        "The favourite food of {s} is {v}.",
        "Nothing tastes better to {s} than {v}.",
        "On Sundays {s} eats {v}.",
    ),
    "pet": (
        "{S} has a {v}.",
        "The pet of {s} is a {v}.",
        "At home, {s} keeps a {v}.",
        "A {v} lives with {s}.",
    ),
}

QUESTIONS = {
    "place": ("Where is {s} kept?", "Where can I find {s}?", "In which place is {s} kept?"),
    "colour": ("What colour is {s}?", "How is {s} painted?", "What is the colour of {s}?"),
    "material": ("What is {s} made of?", "From what is {s} made?", "Which material is {s} made of?"),
    "use": ("What is {s} used for?", "What is {s} good for?", "For what do people use {s}?"),
    "maker": ("Who built {s}?", "Who is the maker of {s}?", "By whom was {s} built?"),
    "home": ("Where does {s} live?", "Where is the home of {s}?"),
    "job": ("What is the job of {s}?", "What does {s} work as?"),
    "food": ("What does {s} love to eat?", "What is the favourite food of {s}?"),
    "pet": ("What pet does {s} have?", "Which animal lives with {s}?"),
}


@dataclass(frozen=True)
class Subject:
    """One thing or person with its facts.

    Attributes:
        name: name without article ("Nora", "tide bell").
        facts: relation to value, in the order of the relations.
        is_person: whether the name stands without article in a sentence.
    """

    name: str
    facts: dict[str, str]
    is_person: bool = False

    @property
    def phrase(self) -> str:
        """The subject inside a sentence."""
        return self.name if self.is_person else f"the {self.name}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def fill(template: str, phrase: str, value: str = "") -> str:
    """Fills subject and value into a wording."""
    return template.format(s=phrase, S=_capital(phrase), v=value, V=_capital(value))


def state(subject: Subject, relation: str) -> str:
    """Writes the canonical sentence of a fact, which is the exact text of a labelled answer."""
    return fill(STATEMENTS[relation][0], subject.phrase, subject.facts[relation])


def reword(
    rng: random.Random, subject: Subject, relation: str, *, canonical: float = 0.3, pronoun: bool = False
) -> str:
    """Writes a fact in a random wording.

    Args:
        rng: random generator.
        subject: the thing or person.
        relation: the fact.
        canonical: probability of the canonical wording; the other wordings share the rest evenly.
        pronoun: write "it" instead of the name of a thing that opens the sentence.
    """
    choices = STATEMENTS[relation]
    template = choices[0] if rng.random() < canonical else rng.choice(choices[1:])
    phrase = subject.phrase
    if pronoun and not subject.is_person and "{S}" in template:
        phrase = "it"
    return fill(template, phrase, subject.facts[relation])


def ask(rng: random.Random, subject: Subject, relation: str) -> str:
    """Writes the question for a fact in a random wording."""
    return fill(rng.choice(QUESTIONS[relation]), subject.phrase)


def draw_place(rng: random.Random) -> str:
    """Draws a room or a piece of furniture, two words."""
    return f"{rng.choice(words.PLACE_FIRST)} {rng.choice(words.PLACE_SECOND)}"


def draw_use(rng: random.Random) -> str:
    """Draws a use: a verb and its object."""
    verb = rng.choice(sorted(words.USES))
    return f"{verb} {rng.choice(words.USES[verb].split())}"


def draw_thing(rng: random.Random, name: str) -> Subject:
    """Draws a thing with five independent facts."""
    return Subject(
        name,
        {
            "place": draw_place(rng),
            "colour": rng.choice(words.COLOURS),
            "material": rng.choice(words.MATERIALS),
            "use": draw_use(rng),
            "maker": rng.choice(words.MAKERS),
        },
    )


def draw_person(rng: random.Random, name: str) -> Subject:
    """Draws a person with four independent facts."""
    return Subject(
        name,
        {
            "home": rng.choice(words.TOWNS),
            "job": rng.choice(words.JOBS),
            "food": rng.choice(words.FOODS),
            "pet": rng.choice(words.PETS),
        },
        is_person=True,
    )


def coin_name(rng: random.Random) -> str:
    """Coins a new word, so that the base learns to copy a name letter by letter."""
    syllables = [rng.choice(words.ONSETS) + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3)))]
    return "".join(syllables) + rng.choice(("", "n", "l", "r", "k", "m"))


def draw_one_off(rng: random.Random) -> Subject:
    """Draws a thing that occurs in one document only, with a two-word name or a coined one."""
    kind = rng.random()
    if kind < 0.12:
        name = coin_name(rng)
    elif kind < 0.24:
        name = f"{coin_name(rng)} {rng.choice(words.NAME_SECOND)}"
    else:
        while True:
            i, j = rng.randrange(len(words.NAME_FIRST)), rng.randrange(len(words.NAME_SECOND))
            if not words.is_reserved(i, j):
                break
        name = f"{words.NAME_FIRST[i]} {words.NAME_SECOND[j]}"
    return draw_thing(rng, name)


@dataclass(frozen=True)
class World:
    """The people and things whose facts are the same in all general text.

    Attributes:
        people: people with a home, a job, a favourite food and a pet.
        gadgets: things that general text describes and asks about.
        described_only: things that general text describes but never asks about.
    """

    people: tuple[Subject, ...]
    gadgets: tuple[Subject, ...]
    described_only: tuple[Subject, ...]


def build_world(seed: int = 7, *, gadgets: int = 56, described_only: int = 16) -> World:
    """Builds the world of a seed."""
    rng = random.Random(f"world-{seed}")
    names = rng.sample(words.list_names(reserved=False), gadgets + described_only)
    things = [draw_thing(rng, name) for name in names]
    people = [draw_person(rng, name) for name in words.PEOPLE]
    return World(tuple(people), tuple(things[:gadgets]), tuple(things[gadgets:]))
