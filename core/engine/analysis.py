"""Understanding and keeping mixes: maps of weights, learned weights, interference, contributions, baking.

Knows which question is asked of which room, and that the model answers on its own thread. The rooms are
imported there, so that a page can be painted before torch is there. `Engine.compose` is the one instance.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.data.datasets import load_dataset
from core.engine.worker import Stream, Worker
from core.errors import SpecError
from core.merge.methods import BakeSpec
from core.progress import Progress
from core.spec.mix import Mix, Sampling
from core.store import adapters as adapter_store
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.analyze.interference import Behaviour, Interference
    from core.analyze.weight_map import WeightMap
    from core.evaluate.sample import Sample
    from core.model.resident import Resident

MAP_ROWS = 40  # rows of a split that a map or a learned mix reads, where nothing else is said


@dataclass(frozen=True)
class Grid:
    """The weights that a map tries on each axis: `points` of them, evenly from `low` to `high`.

    Raises:
        SpecError: no such grid.
    """

    low: float = -0.5
    high: float = 1.5
    points: int = 9

    def __post_init__(self) -> None:
        if not self.low < self.high or not 2 <= self.points <= 33:
            raise SpecError(
                f"The grid goes from {self.low:g} to {self.high:g} in {self.points} points.",
                "Give 2 to 33 points, from a lower to a higher weight.",
            )

    @property
    def axis(self) -> tuple[float, ...]:
        step = (self.high - self.low) / (self.points - 1)
        return tuple(round(self.low + i * step, 6) for i in range(self.points))


@dataclass(frozen=True)
class Compared(Progress):
    """Progress of comparing the adapters of a mix; the last one has both sides.

    Attributes:
        pairs: one a pair of adapters, by their weights. behaviour: on the prompts; None without prompts.
    """

    pairs: tuple[Interference, ...] = ()
    behaviour: Behaviour | None = None


class Composer:
    """Verbs over mixes that need the model; every one returns a Stream at once.

    Args:
        resident: called on the model's thread only.
    """

    def __init__(self, workspace: Workspace, worker: Worker, resident: Callable[[], Resident]) -> None:
        self._workspace, self._worker, self._resident = workspace, worker, resident

    def weight_map(
        self,
        x: str,
        y: str,
        dataset: str,
        limit: int = MAP_ROWS,
        around: Mix | None = None,
        metric: str = "perplexity",
        grid: Grid | None = None,
    ) -> Stream:
        """Draws the map of two adapters' weights, or goes on with it, or reads it from the workspace; a stream of Drawing.

        Args:
            x, y: ids of the two adapters.
            dataset: its validation split is read; of data that no adapter learned from, the training split.
            limit: at most so many rows, evenly spread over the split; 0 takes all.
            around: the mix that the two belong to; its other adapters keep their weights, and all of them their tilts.
        """
        axis = (grid or Grid()).axis

        def draw() -> Generator[Any, None, None]:
            from core.analyze import weight_map as maps

            plan = maps.MapPlan(
                x, y, _others(around, (x, y)), axis, axis, metric, tilt=around.tilt if around else {}
            )
            yield from maps.draw(self._resident(), plan, self._halves(dataset, limit)[0])

        return self._worker.stream(draw)

    def learn(
        self,
        adapters: Sequence[str],
        dataset: str,
        limit: int = MAP_ROWS,
        around: Mix | None = None,
        drawn: WeightMap | None = None,
        exact: bool = True,
    ) -> Stream:
        """Learns the weights of adapters on the rows that a map reads, and compares the ways on others; a stream of Learning.

        Args:
            around: as for a map.
            drawn: a map of the same rows, which then stands for the grid search.
            exact: also compare exact match, where the dataset has questions.
        """

        def work() -> Generator[Any, None, None]:
            from core.analyze import weight_search

            plan = weight_search.LearnPlan(
                tuple(adapters), _others(around, adapters), exact=exact, tilt=around.tilt if around else {}
            )
            yield from weight_search.learn(self._resident(), plan, *self._halves(dataset, limit), drawn)

        return self._worker.stream(work)

    def _halves(self, dataset: str, limit: int) -> tuple[Sample, Sample]:
        """Rows to choose weights on, and rows to judge them on; no adapter of the library has seen either.

        Validation and test splits as a rule. Data that no adapter learned from is unseen whole: there the
        larger training split is chosen on, and the other two are judged on. At most `limit` rows for the
        one, and twice as many for the other; 0 takes all.
        """
        from core.evaluate import sample

        if self._learned_from(dataset):
            return sample.take(self._workspace, dataset, "val", limit), sample.take(
                self._workspace, dataset, "test", 2 * limit
            )
        first, *rest = (
            sample.take(self._workspace, dataset, split, limit) for split in ("train", "val", "test")
        )
        return first, replace(rest[0], split="val + test", rows=rest[0].rows + rest[1].rows)

    def _learned_from(self, dataset: str) -> bool:
        """Whether an adapter of the library learned from these rows, under whatever id they were imported, or replayed them."""
        content = load_dataset(self._workspace, dataset).sha256
        names = {dataset, content}
        return any(
            names & adapter_store.load(self._workspace, a).learned_from
            for a in self._workspace.ids("adapters")
        )

    def interference(self, mix: Mix, prompts: Sequence[str] = ()) -> Stream:
        """Compares the adapters of a mix two by two, by their weights and on prompts; a stream of Compared."""

        def work() -> Generator[Any, None, None]:
            from core.analyze.interference import listen, meet
            from core.model.generate import encode_prompt

            resident = self._resident()
            ids = [encode_prompt(resident, p, True, 0) for p in prompts if p.strip()]
            pairs: Any = ()
            behaviour: Any = None
            for part in meet(resident, mix):
                if isinstance(part, Progress):
                    yield Compared(part.done, part.total, part.text)
                else:
                    pairs = tuple(part)
            for told in listen(resident, mix, ids) if ids else ():
                if isinstance(told, Progress):
                    yield Compared(told.done, told.total, told.text, pairs=pairs)
                else:
                    behaviour = told
            yield Compared(1, 1, "Done", pairs=pairs, behaviour=behaviour)

        return self._worker.stream(work)

    def contribution(
        self, prompt: str, mix: Mix, answer: str = "", sampling: Sampling | None = None, chat: bool = True
    ) -> Stream:
        """Tells token by token which adapter made an answer likelier; a stream of Attributing.

        Args:
            answer: what is attributed; where it is empty, the mix writes it first.
        """

        def work() -> Generator[Any, None, None]:
            from core.analyze.attribution import contribute

            yield from contribute(self._resident(), prompt, mix, answer, sampling, chat)

        return self._worker.stream(work)

    def bake(self, mix: Mix, spec: BakeSpec) -> Stream:
        """Turns a mix into one ordinary adapter of the library; a stream of Progress, and one Baked at the end."""

        def work() -> Generator[Any, None, None]:
            from core.merge.bake import bake

            yield from bake(self._resident(), mix, spec)

        return self._worker.stream(work)


def _others(around: Mix | None, adapters: Sequence[str]) -> dict[str, float]:
    return {a: w for a, w in around.weights.items() if a not in adapters} if around else {}
