"""What kind of answer an answer is: grounded, an honest refusal, a needless refusal, or unsupported."""

from __future__ import annotations

import re
from collections.abc import Sequence

from core.evaluate.facts import Facts, measure_support, read_facts

GROUNDED, HONEST, NEEDLESS, UNSUPPORTED = (
    "grounded",
    "honest refusal",
    "needless refusal",
    "unsupported",
)
OUTCOMES = (GROUNDED, HONEST, NEEDLESS, UNSUPPORTED)
SUPPORT = 0.6  # of the facts of a grounded answer
_REFUSAL = re.compile(
    r"""(?ix)
    \b(?:i|we)\ (?:do\ not|don['’]t|cannot|can['’]t|could\ not|couldn['’]t)\ (?:know|tell|say|find|answer|see)
    |\bi(?:['’]m|\ am)\ (?:sorry|not\ sure|unable)
    |\bnot\ (?:in|found\ in|given\ in|stated\ in|mentioned\ in|covered\ by)\ the\ (?:\w+\ )?
        (?:passages?|documents?|context|text|sources?)
    |\b(?:passages?|documents?|context|text|sources?)\ (?:do|does)(?:\ not|n['’]t)
        \ (?:say|state|mention|contain|give|tell)
    |\bno\ (?:answer|information)\b
    |\bnothing\ (?:was\ )?found\b
    |\bunknown\b\.?$
    |\bich\ wei(?:ß|ss)\ (?:es\ )?nicht\b|\bkeine\ (?:antwort|angabe)
    |\bje\ ne\ sais\ pas\b|\bno\ (?:lo\ )?s[eé]\b
    """
)


def is_refusal(answer: str) -> bool:
    """Whether an answer is empty, or says that it does not know."""
    return not answer.strip() or bool(_REFUSAL.search(answer))


def classify_answer(answer: str, question: str, gold: Facts, sources: Sequence[str]) -> str:
    """The kind of an answer, one of OUTCOMES.

    Args:
        gold: the facts of the reference; empty without one.
        sources: the passages that the model was given; without passages, the reference.

    Returns:
        A refusal is honest where the sources do not state the gold facts. Another answer is grounded where
        the sources state at least SUPPORT of its facts.
    """
    if is_refusal(answer):
        known = gold.count_common(read_facts("\n".join(sources)))
        return NEEDLESS if sources and len(gold) and known == len(gold) else HONEST
    support = measure_support(answer, question, list(sources))
    return GROUNDED if support is None or support >= SUPPORT else UNSUPPORTED
