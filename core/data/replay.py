"""Replay: general documents added to a domain run, so that the base forgets less general language.

Source: experience replay against forgetting, Rolnick et al. 2019, arXiv 1811.11682.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def add_replay(
    documents: Sequence[Sequence[int]], general: Sequence[Sequence[int]], share: float, seed: int
) -> list[Sequence[int]]:
    """Adds general documents until they hold about `share` of all tokens, then shuffles.

    When the general text is too short, documents are drawn from it more than once.

    Args:
        documents: token ids of each domain document.
        general: token ids of each general document; empty for no replay.
        share: share of general tokens among all tokens, 0 to below 1.
        seed: decides which general documents are drawn, and the order.
    """
    generator = random.Random(seed)
    combined = list(documents)
    if share > 0 and general:
        need = share / (1 - share) * sum(map(len, documents))
        while need > 0:
            for document in generator.sample(general, len(general)):
                if need <= 0:
                    break
                combined.append(document)
                need -= len(document)
    generator.shuffle(combined)
    return combined
