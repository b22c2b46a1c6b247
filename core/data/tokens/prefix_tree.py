"""The sequences of a batch as a tree: tokens that several sequences begin with are read once.

A causal model computes the same states for the same beginning, whatever follows it. So a beginning that
sequences share, such as the system text of a chat template, needs one computation, and every sequence
attends to it:

    sequences   [s s s q q a e]  [s s s r r b b e]          trained: a e, b b e
    flat row     s s s q q a  r r b b                       10 tokens instead of 15
    positions    0 1 2 3 4 5  3 4 5 6
    paths        0 1 2 3 4 5                                 of the first sequence
                 0 1 2 6 7 8 9                               of the second

A token after which nothing is trained is not read either: here each e is predicted, and predicts nothing.
Padding disappears in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Branch:
    """One sequence of a tree.

    Attributes:
        start, end: the nodes that the sequence added, `start` to `end` - 1; none if all were there.
        path: all nodes of the sequence from its beginning; the last `end` - `start` are its own.
    """

    start: int
    end: int
    path: list[int]


@dataclass
class PrefixTree:
    """Sequences that share their beginnings, as one flat row of N nodes.

    Attributes:
        ids: N token ids.
        positions: N positions, each the depth of its node.
        branches: the sequences that added nodes.
        targets: (node, the token that it predicts) -> how many sequences train it.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    targets: dict[tuple[int, int], int] = field(default_factory=dict)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)  # (parent, token) -> node

    def add(self, ids: Sequence[int], trained: Sequence[bool]) -> None:
        """Adds a sequence.

        Args:
            ids: T token ids.
            trained: T values, whether each token is trained; the first one is never predicted.
        """
        last = max((i for i in range(1, len(ids)) if trained[i]), default=0)
        start, node, path = len(self.ids), -1, []
        for position in range(last):
            key = (node, ids[position])
            child = self._children.get(key)
            if child is None:
                child = self._children[key] = len(self.ids)
                self.ids.append(ids[position])
                self.positions.append(position)
            node = child
            path.append(node)
            if trained[position + 1]:
                target = (node, ids[position + 1])
                self.targets[target] = self.targets.get(target, 0) + 1
        if len(self.ids) > start:
            self.branches.append(Branch(start, len(self.ids), path))


def build_tree(sequences: Iterable[tuple[Sequence[int], Sequence[bool]]]) -> PrefixTree:
    """The tree of sequences, each given as its token ids and whether each of them is trained."""
    tree = PrefixTree()
    for ids, trained in sequences:
        tree.add(ids, trained)
    return tree
