"""Votes on answers without knowing which mix wrote them, and tallies the votes.

    python -m examples.blind_test [WORKSPACE]

Here a rule votes in place of a reader: the best answer shares the most words with the reference.
"""

import random
import sys
import tempfile

from core.engine import Engine
from core.spec.mix import Mix, Sampling
from examples.train import get_adapters

QUESTIONS = 8


def choose_answer(texts: list[str], reference: str) -> int | None:
    """The position of the best answer, or None if the best ones are equally good."""
    expected = set(reference.split())
    scores = [len(set(t.split()) & expected) / len(set(t.split()) | expected) for t in texts]
    return scores.index(max(scores)) if scores.count(max(scores)) == 1 else None


def main(workspace: str) -> None:
    with Engine(workspace) as engine:
        domain, task = get_adapters(engine)
        mixes = [
            Mix(name="domain", weights={domain: 1.0}),
            Mix(name="both", weights={domain: 1.0, task: 1.0}),
        ]
        for row in engine.samples.general_questions()[:QUESTIONS]:
            question, reference = (message["content"] for message in row["messages"])
            columns = engine.chat.stream(question, mixes, Sampling(max_new_tokens=24)).last().columns
            random.shuffle(columns)  # the order does not reveal the mix
            chosen = choose_answer([c.text for c in columns], reference)
            # A stamp records what an answer was generated with: base, adapters, weights.
            engine.votes.cast(question, [c.stamp for c in columns], chosen)
            print(f"{question} -> {'no difference' if chosen is None else columns[chosen].text}")
        for standing in engine.votes.tally():
            low, high = standing.interval
            counts = f"{standing.wins} wins and {standing.ties} ties in {standing.votes} votes"
            print(f"{standing.name}: {counts}, win rate {low:.0%} to {high:.0%}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
