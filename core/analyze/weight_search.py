"""Searches the weights of a mix on validation rows, and compares the searches on test rows.

Gradient descent, a grid search and LoraHub's gradient-free search (`core.analyze.weight_optimizers`) are
compared with the plain sum and with the best single adapter (`core.analyze.search_results`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from core.analyze.search_results import SEARCH_NAMES, SearchComparison, SearchResult, bootstrap_gain
from core.analyze.weight_optimizers import (
    SearchState,
    WeightSearchSpec,
    list_references,
    run_bfgs,
    run_evolution,
    run_grid_search,
)
from core.errors import SpecError
from core.evaluate.rows import describe_notes
from core.evaluate.sample import (
    EncodedSample,
    RowLosses,
    RowMatches,
    Sample,
    encode_sample,
    load_stable_adapters,
)
from core.model.resident import Resident
from core.progress import Progress
from core.store.weight_maps import WeightMap


@dataclass(frozen=True)
class WeightSearchProgress(Progress):
    """Progress of a weight search; the last one holds the comparison."""

    comparison: SearchComparison | None = None


def search_weights(
    resident: Resident,
    spec: WeightSearchSpec,
    validation: Sample,
    test: Sample,
    known_map: WeightMap | None = None,
) -> Iterator[WeightSearchProgress]:
    """Searches weights in three ways on validation rows and compares them on test rows.

    Args:
        known_map: a perplexity map; if it is complete and of the same adapters and validation rows, it
            replaces the grid search.

    Yields:
        A WeightSearchProgress after every forward.

    Raises:
        SpecError: validation and test are the same rows, or of different kinds.
        Busy: an adapter is still in training.
        NotFound, AdapterError: an adapter cannot be loaded.
    """
    if validation.digest == test.digest or validation.kind != test.kind:
        raise SpecError(
            "Validation and test are the same rows, or rows of different kinds.",
            "Choose two splits of one dataset.",
        )
    digests = load_stable_adapters(resident, [*spec.fixed, *spec.adapters])
    encoded = encode_sample(resident, validation, spec.max_length)
    searches = [SearchState("gradient"), SearchState("grid"), SearchState("gradient-free")]
    matching_map = known_map if _replaces_grid(known_map, spec, digests, validation) else None
    works = (
        run_bfgs(resident, spec, encoded, searches[0]),
        run_grid_search(resident, spec, encoded, searches[1], matching_map),
        run_evolution(resident, spec, encoded, searches[2]),
    )
    for i, (search, work) in enumerate(zip(searches, works, strict=True)):
        for _ in search.timer.iterate(work):
            yield WeightSearchProgress(int(100 * (i + search.share)), 400, SEARCH_NAMES[search.name])
    candidates = _list_candidates(spec, searches)
    mixes = [spec.mix(c.weights) for c in candidates]
    validation_losses = RowLosses(resident, encoded, mixes)
    encoded_test = encode_sample(resident, test, spec.max_length)
    test_losses = RowLosses(resident, encoded_test, mixes)
    for share in validation_losses.compute():
        yield WeightSearchProgress(int(300 + 30 * share), 400, f"Evaluating on {validation.split}")
    for share in test_losses.compute():
        yield WeightSearchProgress(int(330 + 30 * share), 400, f"Evaluating on {test.split}")
    matches = None
    if spec.exact and test.kind == "task":
        matches = RowMatches(resident, test, mixes, spec.max_new_tokens)
        for share in matches.compute():
            yield WeightSearchProgress(int(360 + 40 * share), 400, "Answering the test questions")
    comparison = SearchComparison(
        adapters=spec.adapters,
        fixed=dict(spec.fixed),
        digests=digests,
        validation=str(validation),
        test=str(test),
        validation_digest=validation.digest,
        test_digest=test.digest,
        seed=spec.seed,
        results=_collect_results(spec, candidates, validation_losses, test_losses, matches),
        tilt=dict(spec.tilt),
        max_new_tokens=matches.max_new_tokens if matches is not None else 0,
        note=_describe_rows(validation, encoded, test, encoded_test),
    )
    yield WeightSearchProgress(400, 400, "Done", comparison=comparison)


def _describe_rows(
    validation: Sample, encoded: EncodedSample, test: Sample, encoded_test: EncodedSample
) -> str:
    """What was cut and left out of both samples; "" where nothing was."""
    parts = ((validation, describe_notes(encoded.notes)), (test, describe_notes(encoded_test.notes)))
    return " ".join(f"Of {sample}: {text}" for sample, text in parts if text)


def _replaces_grid(
    known_map: WeightMap | None, spec: WeightSearchSpec, digests: Mapping[str, str], validation: Sample
) -> bool:
    """Whether a map holds what a grid search would measure."""
    return (
        known_map is not None
        and known_map.complete
        and known_map.metric == "perplexity"
        and known_map.sample == validation.digest
        and set(known_map.adapters) == set(spec.adapters)
        and known_map.fixed == dict(spec.fixed)
        and known_map.tilt == dict(spec.tilt)
        and known_map.digests == dict(digests)
    )


def _list_candidates(spec: WeightSearchSpec, searches: Sequence[SearchState]) -> list[SearchState]:
    """The searches, then the references without cost: sum, base, and every single adapter."""
    plain_sum, *singles, base = list_references(len(spec.adapters))
    references = [SearchState("sum", weights=plain_sum), SearchState("base", weights=base)]
    if len(singles) > 1:  # the plain sum of one adapter is that adapter
        references += [SearchState("single", weights=weights) for weights in singles]
    return [*searches, *references]


def _collect_results(
    spec: WeightSearchSpec,
    candidates: Sequence[SearchState],
    validation: RowLosses,
    test: RowLosses,
    matches: RowMatches | None,
) -> tuple[SearchResult, ...]:
    """One result per candidate; of the single adapters only the one with the best validation loss."""
    singles = [i for i, c in enumerate(candidates) if c.name == "single"]
    best = min(singles, key=validation.losses.__getitem__, default=-1)
    references = {c.name: i for i, c in enumerate(candidates) if c.name == "sum" or i == best}
    results = []
    for i, candidate in enumerate(candidates):
        if i in singles and i != best:
            continue
        gains = {}
        if candidate.name in SEARCH_NAMES:
            gains = {r: bootstrap_gain(test, matches, i, j, spec.seed) for r, j in references.items()}
        results.append(
            SearchResult(
                name=candidate.name,
                weights={a: round(w, 4) for a, w in zip(spec.adapters, candidate.weights, strict=True)},
                seconds=round(candidate.timer.seconds, 3),
                forwards=candidate.timer.forwards,
                validation_loss=validation.losses[i],
                test_loss=test.losses[i],
                exact_match=matches.shares[i] if matches is not None else None,
                gains=gains,
                note=candidate.note,
            )
        )
    return tuple(results)
