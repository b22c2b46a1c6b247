"""Analyses of mixes: weight maps, weight search, interference, attribution. `engine.analysis`.

The modules that compute are imported on the model's thread, so the page appears before torch is loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.data.datasets import load_dataset
from core.engine.worker import Stream, Worker
from core.errors import NotFound, SpecError, StudioError
from core.progress import Progress
from core.spec.fixed_weights import require_numbers
from core.spec.mix import Mix, Sampling
from core.store import adapters as adapter_store
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.analyze.interference import WeightComparison
    from core.analyze.output_comparison import OutputComparison
    from core.evaluate.sample import Sample
    from core.model.resident import Resident
    from core.store.weight_maps import WeightMap

MAP_ROWS = 40  # default number of rows that a weight map or a weight search reads


@dataclass(frozen=True)
class WeightAxis:
    """The weights that a map tries on each axis: `points` of them, evenly spaced from `low` to `high`.

    Raises:
        SpecError: fewer than 2 or more than 33 points, or `low` is not below `high`.
    """

    low: float = -0.5
    high: float = 1.5
    points: int = 9

    def __post_init__(self) -> None:
        if not self.low < self.high or not 2 <= self.points <= 33:
            raise SpecError(
                "An axis must have 2 to 33 points from a lower to a higher weight, "
                f"got {self.points} from {self.low:g} to {self.high:g}.",
                "Change the range or the number of points.",
            )

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights, ascending."""
        step = (self.high - self.low) / (self.points - 1)
        return tuple(round(self.low + i * step, 6) for i in range(self.points))


@dataclass(frozen=True)
class InterferenceProgress(Progress):
    """Progress of comparing the adapters of a mix; the last one holds both results.

    Attributes:
        pairs: one comparison of weights per pair of adapters.
        outputs: the comparison on the prompts; None without prompts that fit the base.
        note: on the prompts that were left out, and on the weights that were on Auto.
    """

    pairs: tuple[WeightComparison, ...] = ()
    outputs: OutputComparison | None = None
    note: str = ""


class Analysis:
    """Analyses that need the model. Every method returns its stream immediately.

    Args:
        resident: returns the resident base; called on the model's thread only.
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
        axis: WeightAxis | None = None,
    ) -> Stream:
        """Measures a metric over a grid of two adapters' weights.

        A map that is stored is read, and continued where it is incomplete.

        Args:
            x, y: ids of the two adapters.
            dataset: its validation split is scored; the training split, if no adapter was trained on it.
            limit: at most this many rows, spread evenly over the split; 0 reads all.
            around: the mix that the two belong to; its other adapters keep their weights, which must be
                numbers, and all adapters keep their tilts.
            metric: what is measured, such as "perplexity".
            axis: the weights of both adapters.

        Returns:
            a stream of WeightMapProgress.

        Raises:
            SpecError: a weight of the other adapters is on Auto.
        """
        weights, others = (axis or WeightAxis()).weights, self._other_weights("A weight map", around, (x, y))

        def work() -> Generator[Any, None, None]:
            from core.analyze import weight_map as maps

            tilt = around.tilt if around else {}
            spec = maps.WeightMapSpec(x, y, others, weights, weights, metric, tilt=tilt)
            yield from maps.compute_map(self._resident(), spec, self.choose_samples(dataset, limit)[0])

        return self._worker.stream(work)

    def search_weights(
        self,
        adapters: Sequence[str],
        dataset: str,
        limit: int = MAP_ROWS,
        around: Mix | None = None,
        known_map: WeightMap | None = None,
        exact: bool = True,
    ) -> Stream:
        """Searches adapter weights with three methods, and compares the results on rows none of them read.

        The methods are gradient descent, grid search, and a gradient-free optimizer.

        Args:
            adapters: ids of the adapters whose weights are searched.
            dataset, limit, around: as in `weight_map`.
            known_map: a map of the same rows, which replaces the grid search.
            exact: also compare exact match, if the dataset has questions.

        Returns:
            a stream of WeightSearchProgress.

        Raises:
            SpecError: a weight of the other adapters is on Auto.
        """
        others = self._other_weights("A weight search", around, adapters)

        def work() -> Generator[Any, None, None]:
            from core.analyze.weight_optimizers import WeightSearchSpec
            from core.analyze.weight_search import search_weights

            tilt = around.tilt if around else {}
            spec = WeightSearchSpec(tuple(adapters), others, exact=exact, tilt=tilt)
            yield from search_weights(self._resident(), spec, *self.choose_samples(dataset, limit), known_map)

        return self._worker.stream(work)

    def _other_weights(self, purpose: str, around: Mix | None, adapters: Sequence[str]) -> dict[str, float]:
        """The weights of a mix without those of `adapters`, whose own weights are varied.

        Raises:
            SpecError: one of them is on Auto.
        """
        if around is None:
            return {}
        others = replace(around, weights={a: w for a, w in around.weights.items() if a not in adapters})
        return require_numbers(others, purpose, self._names(others)).weights

    def _names(self, mix: Mix) -> dict[str, str]:
        """The names of the adapters of a mix that are on Auto."""
        names = {}
        for adapter_id in mix.auto:
            with contextlib.suppress(NotFound):  # in training
                names[adapter_id] = adapter_store.load(self._workspace, adapter_id).name
        return names

    def choose_samples(self, dataset: str, limit: int) -> tuple[Sample, Sample]:
        """Rows to choose weights on, and rows to evaluate them on. No adapter was trained on either.

        Usually these are the validation and the test split. If no adapter was trained on the dataset, weights
        are chosen on the larger training split and evaluated on the other two.

        Args:
            limit: at most this many rows to choose on, and this many of each split, or twice as many of the
                test split alone, to evaluate on; 0 takes all.
        """
        from core.evaluate import sample

        if self._is_trained_on(dataset):
            validation = sample.load_sample(self._workspace, dataset, "val", limit)
            return validation, sample.load_sample(self._workspace, dataset, "test", 2 * limit)
        train, validation, test = (
            sample.load_sample(self._workspace, dataset, split, limit) for split in ("train", "val", "test")
        )
        numbers = validation.numbers + test.numbers
        rows = validation.rows + test.rows
        return train, replace(validation, split="val + test", rows=rows, numbers=numbers)

    def _is_trained_on(self, dataset: str) -> bool:
        """Whether an adapter of the library was trained on these rows or replayed them.

        The rows are compared by checksum, so another import of the same files counts too.
        """
        names = {dataset, load_dataset(self._workspace, dataset).sha256}
        library = adapter_store.load_all(self._workspace)
        return any(names & adapter.training_data for adapter in library)

    def interference(self, mix: Mix, prompts: Sequence[str] = ()) -> Stream:
        """Compares the adapters of a mix pairwise, by their weights and on prompts.

        Weights on Auto are resolved for a single prompt; the note says which weights that gives.

        Returns:
            a stream of InterferenceProgress.

        Raises:
            SpecError: a weight is on Auto, and there is not exactly one prompt.
        """
        given = [p for p in prompts if p.strip()]
        if len(given) != 1:
            require_numbers(mix, "A comparison without a single prompt", self._names(mix))

        def work() -> Generator[Any, None, None]:
            from core.analyze.interference import compare_weights
            from core.analyze.output_comparison import compare_outputs
            from core.model.gating import resolve_mixes
            from core.model.generate import encode_prompt

            resident = self._resident()
            ids, left_out = [], []
            for number, prompt in enumerate(given, 1):
                try:
                    ids.append(encode_prompt(resident, prompt, True, 0))
                except StudioError as e:
                    left_out.append(f"Prompt {number} was left out: {e.what}")
            fixed: Mix = mix
            choices: Any = None
            if mix.auto:
                names = self._names(mix)
                if not ids:
                    require_numbers(mix, "A comparison without a prompt that fits", names)
                for choices in resolve_mixes(resident, ids, [mix]):
                    yield InterferenceProgress(0, 1, "Reading the prompt")
                fixed = choices[0][0].mix
                left_out.append(_describe_choice(mix, fixed, names))
                if len(fixed.weights) < 2:
                    what = f"A comparison needs at least two adapters. {left_out[-1]}"
                    raise SpecError(what, "Set them to numbers, or ask another question.")
            pairs: Any = ()
            outputs: Any = None
            for part in compare_weights(resident, fixed):
                if isinstance(part, Progress):
                    yield InterferenceProgress(part.done, part.total, part.text)
                else:
                    pairs = tuple(part)
            for step in compare_outputs(resident, fixed, ids) if ids else ():
                if isinstance(step, Progress):
                    yield InterferenceProgress(step.done, step.total, step.text, pairs=pairs)
                else:
                    outputs = step
            yield InterferenceProgress(1, 1, "Done", pairs=pairs, outputs=outputs, note=" ".join(left_out))

        return self._worker.stream(work)

    def attribution(
        self, prompt: str, mix: Mix, answer: str = "", sampling: Sampling | None = None, chat: bool = True
    ) -> Stream:
        """Computes, token by token, which adapter made an answer more likely.

        Args:
            answer: the text to attribute; with "", the mix generates it first.

        Returns:
            a stream of AttributionProgress.
        """

        def work() -> Generator[Any, None, None]:
            from core.analyze.attribution import attribute_answer

            yield from attribute_answer(self._resident(), prompt, mix, answer, sampling, chat)

        return self._worker.stream(work)


def _describe_choice(requested: Mix, chosen: Mix, names: Mapping[str, str]) -> str:
    """The weights on Auto for one prompt, as a sentence."""
    weights = [f"{names.get(a, a)} {chosen.weights.get(a, 0.0):.2f}" for a in requested.auto]
    return f"Weights on Auto, for this prompt: {', '.join(weights)}."
