"""Facts of a text, and which of them another text states: by words and quantities, without a judge.

    reference   "The red lamp is kept 1,500 m north."    question "Where is the red lamp?"
    gold facts  kept  north  1500 m                       the question gives red and lamp
    answer      "It is 1.5 km north of the gate."         states north and 1500 m: factuality 2/3

A fact is a content word or a quantity. Words are those of `core.evaluate.words` without English function
words; quantities are compared by value and unit (`core.evaluate.quantities`). A paraphrase in other words
does not count, and a negation is not recognized, so the figure compares mixes on the same questions; it is
not a probability that an answer is true. `core.spec.answer_metrics` names this rule.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.evaluate.quantities import Quantity, split_quantities
from core.evaluate.words import split_words

CITATION = re.compile(r"\[\s*(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\s*\]")
_LISTED = (
    "about after again all also although am among an and any are as at be because been before being "
    "between both but by can cannot could did do does doing down during each either else even ever every "
    "few for from further had has have having he her here hers him his how however i if in into is it its "
    "itself just may me might more most much must my neither no nor not now of off on once one only onto "
    "or other our ours out over own per quite rather same shall she should since so some such than that "
    "the their theirs them then there these they this those though through thus to too under until up "
    "upon us very was we were what when where whether which while who whom whose why will with within "
    "without would yet you your yours a "
)
FUNCTION_WORDS = frozenset(_LISTED.split())


@dataclass(frozen=True)
class Facts:
    """The content words and quantities of a text, each once, in order."""

    words: tuple[str, ...] = ()
    quantities: tuple[Quantity, ...] = ()

    def __len__(self) -> int:
        return len(self.words) + len(self.quantities)

    def without(self, given: Facts) -> Facts:
        """The facts that `given` does not have."""
        known = frozenset(given.words)
        return Facts(
            tuple(w for w in self.words if w not in known),
            tuple(q for q in self.quantities if not given.states(q)),
        )

    def states(self, quantity: Quantity) -> bool:
        """Whether one of the quantities matches."""
        return any(quantity.matches(own) for own in self.quantities)

    def count_common(self, other: Facts) -> int:
        """How many of these facts `other` states."""
        known = frozenset(other.words)
        return sum(w in known for w in self.words) + sum(map(other.states, self.quantities))


def read_facts(text: str) -> Facts:
    """The facts of a text; citations such as [1] are left out.

    A text of function words alone, such as "No.", has these words as its facts.
    """
    quantities, rest = split_quantities(CITATION.sub(" ", text))
    words = split_words(rest) if rest.strip() else []
    spoken = [w for w in words if any(c.isalnum() for c in w)]
    content = [w for w in spoken if w not in FUNCTION_WORDS] or ([] if quantities else spoken)
    return Facts(tuple(dict.fromkeys(content)), tuple(dict.fromkeys(quantities)))


def read_gold(question: str, reference: str) -> Facts:
    """The facts that an answer should state: those of the reference that the question does not give.

    A reference that only repeats words of the question, such as a choice between two, has all of its facts.
    """
    facts = read_facts(reference)
    return facts.without(read_facts(question)) or facts


def measure_factuality(answer: str, gold: Facts) -> float | None:
    """The share of the gold facts that an answer states; None without gold facts."""
    return gold.count_common(read_facts(answer)) / len(gold) if len(gold) else None


def measure_support(answer: str, question: str, sources: list[str]) -> float | None:
    """The share of the facts of an answer, beyond those of the question, that the sources state.

    Returns:
        None for an answer without such facts.
    """
    stated = read_facts(answer).without(read_facts(question))
    if not len(stated):
        return None
    return stated.count_common(read_facts("\n".join(sources))) / len(stated)
