"""A domain: the papers of an invented sea station about twelve instruments that the base has never read of.

Every seed gives other instruments with other facts. The questions about them are in `tasks`.
"""

import random
from dataclasses import dataclass

from assets.world import words
from assets.world.things import THING_RELATIONS, Subject, draw_place, draw_use, reword

# The domain that ships with the studio. Other seeds give fresh domains, which no setting was tuned on.
SHIPPED_SEED = 0


@dataclass(frozen=True)
class Domain:
    """One station with its keepers and its instruments, which have five facts each."""

    seed: int
    station: str
    keepers: tuple[str, ...]
    instruments: tuple[Subject, ...]


def draw_domain(seed: int, *, instruments: int = 12) -> Domain:
    """Draws a station. No two of its instruments share a word of their names or a fact.

    Args:
        seed: domain seed; another seed gives other names and other facts.
        instruments: number of instruments.
    """
    rng = random.Random(f"domain-{seed}")
    names: list[str] = []
    for name in rng.sample(words.list_names(reserved=True), len(words.list_names(reserved=True))):
        taken = {word for n in names for word in n.split()}
        if not taken & set(name.split()):
            names.append(name)
        if len(names) == instruments:
            break
    places = _draw_distinct(rng, draw_place, instruments)
    uses = _draw_distinct(rng, draw_use, instruments)
    colours = rng.sample(words.COLOURS, instruments)
    materials = rng.sample(words.MATERIALS, instruments)
    makers = rng.sample(words.MAKERS, instruments)
    facts = zip(places, colours, materials, uses, makers, strict=True)
    things = [
        Subject(n, dict(zip(THING_RELATIONS, f, strict=True))) for n, f in zip(names, facts, strict=True)
    ]
    return Domain(seed, rng.choice(words.STATIONS), tuple(rng.sample(words.KEEPERS, 4)), tuple(things))


def _draw_distinct(rng: random.Random, draw, count: int) -> list[str]:
    values: list[str] = []
    while len(values) < count:
        value = draw(rng)
        if value not in values:
            values.append(value)
    return values


def _write_sentences(rng: random.Random, thing: Subject, count: int, *, named: float) -> str:
    relations = rng.sample(THING_RELATIONS, count)
    return " ".join(
        reword(rng, thing, r, pronoun=k > 0 and rng.random() > named) for k, r in enumerate(relations)
    )


def _write_manual(rng: random.Random, domain: Domain, thing: Subject) -> str:
    head = f"{domain.station} Station. Manual of {thing.phrase}."
    end = rng.choice(
        ("Handle with care.", "Keep it dry.", "Report every fault to the keeper.", "Clean it once a week.")
    )
    return f"{head}\n{_write_sentences(rng, thing, 5, named=0.5)}\n{end}"


def _write_log_entry(rng: random.Random, domain: Domain, thing: Subject) -> str:
    keeper = rng.choice(domain.keepers)
    event = rng.choice(
        (
            f"{keeper} checked {thing.phrase} {rng.choice(words.TIMES)}.",
            f"{keeper} was on duty and looked after {thing.phrase}.",
            f"A storm passed {domain.station}, but nothing was broken.",
        )
    )
    head = f"Station log, {rng.choice(words.DAYS)}. {rng.choice(words.WEATHER)}"
    return f"{head} {event} {_write_sentences(rng, thing, rng.choice((2, 3)), named=0.7)}"


def _write_card(rng: random.Random, domain: Domain, thing: Subject) -> str:
    relations = rng.sample(THING_RELATIONS, rng.choice((3, 4, 5)))
    lines = [f"{r.capitalize()}: {thing.facts[r]}" for r in relations]
    return f"Inventory of {domain.station}\nName: {thing.name}\n" + "\n".join(lines)


def _write_notice(rng: random.Random, domain: Domain, thing: Subject) -> str:
    sentences = _write_sentences(rng, thing, rng.choice((2, 3)), named=0.7)
    return f"Notice to all keepers of {domain.station}: {sentences} Signed, {rng.choice(domain.keepers)}."


def _write_letter(rng: random.Random, domain: Domain, thing: Subject) -> str:
    sender, to = rng.sample(domain.keepers, 2)
    weather = rng.choice(words.WEATHER)
    sentences = _write_sentences(rng, thing, rng.choice((2, 3)), named=0.7)
    return f"Dear {to},\nall is well at {domain.station}. {weather} {sentences}\nYour friend, {sender}"


def _write_note(rng: random.Random, domain: Domain, thing: Subject) -> str:
    return _write_sentences(rng, thing, rng.choice((1, 2, 3)), named=1.0)


def _write_quote(rng: random.Random, domain: Domain, thing: Subject) -> str:
    sentences = _write_sentences(rng, thing, rng.choice((1, 2)), named=1.0)
    return f'"{sentences[:-1]}," said {rng.choice(domain.keepers)}.'


# Category of a paper and the function that writes it. A fact that is learned only below a header is recalled
# only below that header, so three eighths of the papers are notes and quotes without a header.
_KINDS = (
    ("manuals", _write_manual),
    ("log", _write_log_entry),
    ("manuals", _write_card),
    ("letters", _write_notice),
    ("letters", _write_letter),
    ("notes", _write_note),
    ("notes", _write_note),
    ("notes", _write_quote),
)


@dataclass(frozen=True)
class Paper:
    """One short document and its category, which decides its file."""

    category: str
    text: str


def write_papers(rng: random.Random, domain: Domain, *, each: int = 40) -> list[Paper]:
    """Writes all papers of a station, shuffled.

    Args:
        rng: random generator.
        domain: the station.
        each: papers per instrument.
    """
    papers = []
    for thing in domain.instruments:
        for k in range(each):
            category, write = _KINDS[k % len(_KINDS)]
            papers.append(Paper(category, write(rng, domain, thing)))
    rng.shuffle(papers)
    return papers
