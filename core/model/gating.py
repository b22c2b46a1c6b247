"""Gates on a model: evidence of prompts, and the mixes that gates choose from it. `core.spec.gate` decides.

    prompts ─> one forward: each under the mix without its gated adapters, and with each of them ─> evidence
    evidence + calibration ─> weight of each gated adapter ─> a mix without Auto

A gate reads the prompt, never the reference answer; of a conversation, the last message only, so that it
follows a change of the subject.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from core.data.tokens.collation import collate
from core.data.tokens.encoding import Prompt
from core.errors import SpecError
from core.model.activation import inference_mode_for
from core.model.decoding import token_log_likelihoods
from core.model.resident import Resident
from core.spec.gate import IN_TRAINING, MINIMUM_TOKENS, WINDOW, Evidence, GateDecision, GateInput, decide
from core.spec.mix import Mix

EVIDENCE_TOKENS = 256  # at the end of a prompt
CANDIDATE_LIMIT = 16  # mixes that one column's gates choose from
BATCH_TOKENS = 1024  # rows x tokens of one forward for evidence alone
SEQ2SEQ = "gates need a base that reads and answers with one stack, and this base has an encoder"


@dataclass(frozen=True)
class Choice:
    """What the gates of one mix chose for a prompt.

    Attributes:
        mix: without Auto.
        decisions: by adapter id.
    """

    mix: Mix
    decisions: dict[str, GateDecision] = field(default_factory=dict)


def find_obstacle(resident: Resident, adapter_id: str) -> str:
    """Why the gate of an adapter stays off, whatever the prompt; "" where it works.

    The adapter must be loaded.
    """
    if resident.base.family.seq2seq:
        return SEQ2SEQ
    if adapter_id == resident.trainee_id:
        return IN_TRAINING
    _, calibration = resident.calibrations.get(adapter_id, ("", None))
    if calibration is None:
        return "it is not calibrated; calibrate it in the Library"
    if calibration.base_fingerprint != resident.base.fingerprint:
        return "it was calibrated on another base; calibrate it again in the Library"
    return calibration.obstacle


def list_candidates(resident: Resident, mix: Mix) -> list[Mix]:
    """The mixes that the gates of a mix choose from, the one without any of their adapters first.

    A gate that reads the prompt needs a mix per adapter. Gates that follow the tokens need every mix that
    they may switch to: one adapter of each kind, or none.

    Raises:
        SpecError: more than CANDIDATE_LIMIT of them.
    """
    working = [a for a in mix.auto if not find_obstacle(resident, a)]
    choices: list[tuple[str, ...]] = [(), *((a,) for a in working)]
    if any(mix.auto[a] == "token" for a in working):
        kinds = sorted({resident.calibrations[a][0] for a in working})
        groups = [["", *(a for a in working if resident.calibrations[a][0] == kind)] for kind in kinds]
        combined = [tuple(a for a in chosen if a) for chosen in itertools.product(*groups)]
        choices += [c for c in combined if len(c) > 1]
    if len(choices) > CANDIDATE_LIMIT:
        raise SpecError(
            f"A mix may have at most {CANDIDATE_LIMIT - 1} adapters on Auto to choose from, "
            f"got {len(choices) - 1}.",
            "Set some of them to a number, or off.",
        )
    return [mix.resolve({a: mix.weights[a] if a in chosen else 0.0 for a in mix.auto}) for chosen in choices]


def decide_mix(
    resident: Resident,
    mix: Mix,
    likelihoods: Mapping[str, torch.Tensor],
    so_far: Mapping[str, GateDecision] | None = None,
) -> Choice:
    """Lets the gates of a mix decide.

    Args:
        likelihoods: adapter id -> log-likelihoods of the tokens, in nats, with it; "" without any of them.
        so_far: what was decided before, for gates that follow the tokens.
    """
    inputs = {}
    for adapter, mode in mix.auto.items():
        kind, calibration = resident.calibrations.get(adapter, ("", None))
        obstacle = find_obstacle(resident, adapter)
        evidence = None
        if not obstacle and len(likelihoods[""]) < MINIMUM_TOKENS:
            obstacle = f"the prompt has fewer than {MINIMUM_TOKENS + 1} tokens"
        elif not obstacle:
            evidence = compute_evidence(likelihoods[adapter], likelihoods[""])
        inputs[adapter] = GateInput(kind, mode, mix.weights[adapter], evidence, calibration, obstacle)
    decisions = decide(inputs, so_far)
    return Choice(mix.resolve({a: d.weight for a, d in decisions.items()}), decisions)


def compute_evidence(with_adapter: torch.Tensor, without: torch.Tensor) -> Evidence:
    """The evidence of two series of log-likelihoods of the same tokens, in nats."""
    gain = with_adapter.double() - without.double()
    parts = functional.avg_pool1d(gain[None], min(WINDOW, len(gain)), stride=1)[0]
    half = parts[: max(1, len(gain) // 2 - WINDOW + 1)]
    return Evidence(float(parts.max()), len(gain), float(half.max()))


def evidence_start(prompt: Sequence[int]) -> int:
    """The index of the first token that counts.

    It is in the last message, and at most EVIDENCE_TOKENS from the end. The first token of a prompt has no
    likelihood.
    """
    question = prompt.question if isinstance(prompt, Prompt) else 0
    return max(1, question, len(prompt) - EVIDENCE_TOKENS)


def measure_likelihoods(
    resident: Resident, prompts: Sequence[Sequence[int]], mixes: Sequence[Sequence[Mix]]
) -> Iterator[list[list[torch.Tensor]]]:
    """Computes the log-likelihoods of prompts, each under its mixes.

    Args:
        prompts: token ids. mixes: without Auto, a list per prompt.

    Yields:
        Per prompt and mix, the log-likelihoods in nats of `evidence_start` and later tokens; the list grows
        with every forward until it is complete.
    """
    results: list[list[torch.Tensor]] = [[torch.zeros(0)] * len(of_prompt) for of_prompt in mixes]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    pairs = [(i, m) for i in order for m in range(len(mixes[i]))]
    pad, device = resident.base.tokenizer.pad_token_id, resident.base.device
    start = 0
    while start < len(pairs):
        end = start + 1
        while end < len(pairs) and len(prompts[pairs[end][0]]) * (end + 1 - start) <= BATCH_TOKENS:
            end += 1
        batch = pairs[start:end]
        used = [mixes[i][m] for i, m in batch]
        resident.load_adapters(used)
        rows = [{"input_ids": list(prompts[i]), "loss_mask": [0] * len(prompts[i])} for i, _ in batch]
        tensors = {k: v.to(device) for k, v in collate(rows, pad).items() if k != "labels"}
        with inference_mode_for(resident, resident.rows(used)):
            logits = resident.base.model(**tensors, use_cache=False).logits
            for b, (i, m) in enumerate(batch):
                length = len(prompts[i])
                first = evidence_start(prompts[i])
                targets = tensors["input_ids"][b, first:length]
                results[i][m] = token_log_likelihoods(logits[b, first - 1 : length - 1], targets)
        yield results
        start = end


def measure_evidence(
    resident: Resident, prompts: Sequence[Sequence[int]], adapter_ids: Sequence[str]
) -> Iterator[list[dict[str, Evidence | None]]]:
    """Measures the evidence of adapters, each alone over the base.

    Args:
        prompts: token ids.

    Yields:
        Per prompt, adapter id -> nats a token, None for a prompt without enough tokens; complete at the end.
    """
    mixes = [Mix(), *(Mix(weights={a: 1.0}) for a in adapter_ids)]
    for results in measure_likelihoods(resident, prompts, [mixes] * len(prompts)):
        yield [
            {
                a: compute_evidence(of_prompt[k + 1], of_prompt[0])
                if len(of_prompt[k + 1]) >= MINIMUM_TOKENS and len(of_prompt[0]) == len(of_prompt[k + 1])
                else None
                for k, a in enumerate(adapter_ids)
            }
            for of_prompt in results
        ]


def resolve_mixes(
    resident: Resident, prompts: Sequence[Sequence[int]], mixes: Sequence[Mix]
) -> Iterator[list[list[Choice]] | None]:
    """Lets the gates of every mix choose for every prompt.

    Yields:
        None after every forward; last, the choices per prompt and mix. A mix without Auto is its own choice.
    """
    gated = [m for m, mix in enumerate(mixes) if mix.auto]
    resident.load_adapters([mixes[m] for m in gated])
    listed = {m: list_candidates(resident, mixes[m]) for m in gated}
    flat = [candidate for m in gated for candidate in listed[m]]
    results: list[list[torch.Tensor]] = []
    if gated and prompts and not resident.base.family.seq2seq:
        for results in measure_likelihoods(resident, prompts, [flat] * len(prompts)):
            yield None
    choices = []
    for i in range(len(prompts)):
        row, at = [], 0
        for m, mix in enumerate(mixes):
            if not mix.auto:
                row.append(Choice(mix))
                continue
            series = results[i][at : at + len(listed[m])] if results else [torch.zeros(0)]
            row.append(decide_mix(resident, mix, name_likelihoods(mix, listed[m], series)))
            at += len(listed[m])
        choices.append(row)
    yield choices


def name_likelihoods(mix: Mix, candidates: Sequence[Mix], series: Sequence[Any]) -> dict[str, Any]:
    """The series of the candidates that open at most one gate, by the adapter; "" for none of them."""
    named = {}
    for candidate, values in zip(candidates, series, strict=True):
        opened = [a for a in mix.auto if a in candidate.weights]
        if len(opened) < 2:
            named["".join(opened)] = values
    return named
