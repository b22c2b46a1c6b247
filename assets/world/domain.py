"""A domain: the papers of an invented sea station about twelve instruments the base never met.

Knows the kinds of paper a station writes and draws fresh instruments for each seed. Knows no questions.
"""

import random
from dataclasses import dataclass

from assets.world import words
from assets.world.things import THING_RELATIONS, Subject, draw_place, draw_use, reword

# The domain that ships with the studio; the others are for measuring on what nobody has looked at.
SHIPPED_SEED = 0


@dataclass(frozen=True)
class Domain:
    """One station: its name, its keepers, and its instruments with five facts each."""

    seed: int
    station: str
    keepers: tuple[str, ...]
    instruments: tuple[Subject, ...]


def draw_domain(seed: int, *, instruments: int = 12) -> Domain:
    """A fresh station. No two of its instruments share a word of their names or a fact.

    Args:
        seed: Domain seed; another seed gives other names and other facts.
        instruments: How many.
    """
    rng = random.Random(f"domain-{seed}")
    names: list[str] = []
    for name in rng.sample(words.list_names(kept_back=True), len(words.list_names(kept_back=True))):
        taken = {word for n in names for word in n.split()}
        if not taken & set(name.split()):
            names.append(name)
        if len(names) == instruments:
            break
    places = _draw_different(rng, draw_place, instruments)
    uses = _draw_different(rng, draw_use, instruments)
    colours = rng.sample(words.COLOURS, instruments)
    materials = rng.sample(words.MATERIALS, instruments)
    makers = rng.sample(words.MAKERS, instruments)
    facts = zip(places, colours, materials, uses, makers, strict=True)
    things = [
        Subject(n, dict(zip(THING_RELATIONS, f, strict=True))) for n, f in zip(names, facts, strict=True)
    ]
    return Domain(seed, rng.choice(words.STATIONS), tuple(rng.sample(words.KEEPERS, 4)), tuple(things))


def _draw_different(rng: random.Random, draw, count: int) -> list[str]:
    drawn: list[str] = []
    while len(drawn) < count:
        value = draw(rng)
        if value not in drawn:
            drawn.append(value)
    return drawn


def _sentences(rng: random.Random, thing: Subject, count: int, *, named: float) -> str:
    relations = rng.sample(THING_RELATIONS, count)
    return " ".join(
        reword(rng, thing, r, pronoun=k > 0 and rng.random() > named) for k, r in enumerate(relations)
    )


def _manual(rng: random.Random, domain: Domain, thing: Subject) -> str:
    head = f"{domain.station} Station. Manual of {thing.phrase}."
    end = rng.choice(
        ("Handle with care.", "Keep it dry.", "Report every fault to the keeper.", "Clean it once a week.")
    )
    return f"{head}\n{_sentences(rng, thing, 5, named=0.5)}\n{end}"


def _log_entry(rng: random.Random, domain: Domain, thing: Subject) -> str:
    keeper = rng.choice(domain.keepers)
    event = rng.choice(
        (
            f"{keeper} checked {thing.phrase} {rng.choice(words.TIMES)}.",
            f"{keeper} was on duty and looked after {thing.phrase}.",
            f"A storm passed {domain.station}, but nothing was broken.",
        )
    )
    head = f"Station log, {rng.choice(words.DAYS)}. {rng.choice(words.WEATHER)}"
    return f"{head} {event} {_sentences(rng, thing, rng.choice((2, 3)), named=0.7)}"


def _card(rng: random.Random, domain: Domain, thing: Subject) -> str:
    relations = rng.sample(THING_RELATIONS, rng.choice((3, 4, 5)))
    lines = [f"{r.capitalize()}: {thing.facts[r]}" for r in relations]
    return f"Inventory of {domain.station}\nName: {thing.name}\n" + "\n".join(lines)


def _notice(rng: random.Random, domain: Domain, thing: Subject) -> str:
    return f"Notice to all keepers of {domain.station}: {_sentences(rng, thing, rng.choice((2, 3)), named=0.7)} Signed, {rng.choice(domain.keepers)}."


def _letter(rng: random.Random, domain: Domain, thing: Subject) -> str:
    sender, to = rng.sample(domain.keepers, 2)
    return f"Dear {to},\nall is well at {domain.station}. {rng.choice(words.WEATHER)} {_sentences(rng, thing, rng.choice((2, 3)), named=0.7)}\nYour friend, {sender}"


def _note(rng: random.Random, domain: Domain, thing: Subject) -> str:
    return _sentences(rng, thing, rng.choice((1, 2, 3)), named=1.0)


def _quote(rng: random.Random, domain: Domain, thing: Subject) -> str:
    return (
        f'"{_sentences(rng, thing, rng.choice((1, 2)), named=1.0)[:-1]}," said {rng.choice(domain.keepers)}.'
    )


# The drawer a paper lies in, and how it is written. A fact learned only below a header hangs on the header:
# three eighths of the papers are bare notes and quotes.
_SHEET = (
    ("manuals", _manual),
    ("log", _log_entry),
    ("manuals", _card),
    ("letters", _notice),
    ("letters", _letter),
    ("notes", _note),
    ("notes", _note),
    ("notes", _quote),
)


@dataclass(frozen=True)
class Paper:
    """One short document and the drawer it lies in."""

    drawer: str
    text: str


def write_papers(rng: random.Random, domain: Domain, *, each: int = 40) -> list[Paper]:
    """All papers of a station in mixed order.

    Args:
        rng: Source of chance.
        domain: The station.
        each: Papers for one instrument.
    """
    papers = []
    for thing in domain.instruments:
        for k in range(each):
            drawer, write = _SHEET[k % len(_SHEET)]
            papers.append(Paper(drawer, write(rng, domain, thing)))
    rng.shuffle(papers)
    return papers
