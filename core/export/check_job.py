"""The process that reopens an exported file in its runtime and compares it with the studio's answers.

A process of its own, because the runtime takes the memory of a whole model, and llama.cpp ends its process on
some errors. The parent is `core.engine.exports`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from core.data.child_process import Parent, serve
from core.errors import StudioError
from core.export.certificate import (
    EXAMPLES_KEPT,
    FAILED,
    LIMITS,
    PASSED,
    TEXT_LIMIT,
    UNCHECKED,
    Certificate,
    CheckedPrompt,
    Comparison,
    Runtime,
    count_equal,
    judge,
    limit_difference,
    list_likeliest,
)
from core.gguf.quantization import PACKAGE
from core.progress import ReadProgress
from core.train.memory import available_bytes

if TYPE_CHECKING:
    from core.export.reference import Reference

RUNTIMES = ("transformers", "peft", "llama.cpp")
SPARE_BYTES = 1 << 30  # beside the model


@dataclass(frozen=True)
class CheckRequest:
    """What to reopen.

    Attributes:
        runtime: one of RUNTIMES.
        model: folder or file of the model, or of the base.
        adapters: folder of a PEFT adapter or path of an adapter as GGUF -> its scale.
        reference: the folder that `core.export.reference` filled.
        precision: a key of `LIMITS`.
        model_bytes: memory that the model takes in its runtime.
    """

    runtime: str
    model: str
    reference: str
    precision: str
    model_bytes: int = 0
    adapters: Mapping[str, float] = field(default_factory=dict)


def run() -> None:
    """The entrance of the process."""
    serve(lambda request, parent: dataclasses.asdict(check(request, parent)))


def check(request: CheckRequest, parent: Parent) -> Certificate:
    """Reopens the file and compares it.

    Raises:
        Cancelled: the parent has cancelled the work. What fails otherwise is said in the certificate.
    """
    if reason := _explain_absence(request):
        return Certificate(UNCHECKED, reason, created=time.time())
    from core.export.reference import read_reference

    reference = read_reference(Path(request.reference))
    parent.report(ReadProgress(0, len(reference.prompts), "Opening the file in its runtime"))
    try:
        runtime = _open(request, reference)
    except StudioError as e:
        return Certificate(FAILED, e.what, studio=reference.precision, created=time.time())
    return _compare(request, reference, runtime, parent)


def _explain_absence(request: CheckRequest) -> str:
    """Why the file cannot be reopened here; "" where it can."""
    from core.export.runtimes import LLAMA_CPP, is_installed

    if request.runtime == "llama.cpp" and not is_installed(LLAMA_CPP):
        return (
            f"llama.cpp is not installed: `pip install {PACKAGE}`, and check the export again. "
            "The file itself is complete."
        )
    free = available_bytes(on_gpu=False)
    if free is not None and request.model_bytes + SPARE_BYTES > free:
        need = (request.model_bytes + SPARE_BYTES) / 1e9
        return f"The check needs {need:.1f} GB of memory, and {free / 1e9:.1f} GB are free."
    return ""


def _open(request: CheckRequest, reference: Reference) -> Runtime:
    from core.export.runtimes import LlamaCppRuntime, TransformersRuntime

    if request.runtime == "llama.cpp":
        adapters = {Path(path): scale for path, scale in request.adapters.items()}
        return LlamaCppRuntime(Path(request.model), reference, adapters)
    adapter = next((Path(path) for path in request.adapters), None)
    return TransformersRuntime(Path(request.model), reference, adapter)


def _compare(request: CheckRequest, reference: Reference, runtime: Runtime, parent: Parent) -> Certificate:
    sums, equal, answered = Comparison(), 0, 0
    examples: list[CheckedPrompt] = []
    pairs = list(zip(reference.prompts, reference.read_logits(), strict=True))
    for number, (prompt, logits) in enumerate(pairs):
        parent.report(ReadProgress(number, len(pairs), f"Comparing with {runtime.name}"))
        followers = prompt.answer if reference.is_seq2seq else [*prompt.prompt, *prompt.answer]
        following = followers[len(followers) - prompt.positions + 1 :]
        try:
            predicted = runtime.predict(prompt.prompt, prompt.answer, prompt.positions)
            # The first answers are written by the runtime. What it predicts after the same beginnings says
            # of the others how far they are equal, and costs nothing.
            is_example = len(examples) < EXAMPLES_KEPT
            said = runtime.answer(prompt.prompt, max(1, len(prompt.answer))) if is_example else None
        except (StudioError, OSError, ValueError, RuntimeError) as e:
            reason = f"{runtime.name} failed on a prompt: {type(e).__name__}: {e}"[:TEXT_LIMIT]
            return Certificate(FAILED, reason, runtime.name, reference.precision, created=time.time())
        sums.add(logits, predicted, following[: prompt.positions])
        likeliest = list_likeliest(predicted)[prompt.positions - len(prompt.answer) - 1 :]
        same = count_equal(prompt.answer, likeliest if said is None else said)
        equal, answered = equal + same, answered + len(prompt.answer)
        if said is not None:
            examples.append(
                _make_example(request, prompt.text, prompt.answer_text, said, same, prompt.answer)
            )
    return _conclude(request, reference, runtime, sums, equal, answered, examples)


def _make_example(
    request: CheckRequest, prompt: str, answer_text: str, said: list[int], same: int, answer: list[int]
) -> CheckedPrompt:
    text = answer_text if said == answer else f"{len(said)} tokens, of which the first {same} are the same"
    return CheckedPrompt(prompt[:TEXT_LIMIT], answer_text[:TEXT_LIMIT], text[:TEXT_LIMIT], same, len(answer))


def _conclude(
    request: CheckRequest,
    reference: Reference,
    runtime: Runtime,
    sums: Comparison,
    equal: int,
    answered: int,
    examples: list[CheckedPrompt],
) -> Certificate:
    limits = LIMITS["quantized studio" if reference.is_quantized else request.precision]
    limits = limit_difference(limits, sums.largest)
    # A runtime may know more stop tokens than the file names; those of the studio must be among them.
    same_stops = None if request.runtime == "llama.cpp" else set(runtime.stops) <= set(reference.stops)
    same_template = None if runtime.template is None else runtime.template == reference.template
    reason = judge(sums, limits, same_stops, same_template)
    return Certificate(
        status=FAILED if reason else PASSED,
        reason=reason,
        runtime=runtime.name,
        studio=reference.precision,
        prompts=len(reference.prompts),
        positions=sums.positions,
        agreement=sums.agreeing / max(1, sums.positions),
        free_agreement=equal / answered if answered else 1.0,
        kl=sums.kl / max(1, sums.positions) if math.isfinite(sums.kl) else -1.0,
        kl_is_bound=sums.kl_is_bound,
        difference=sums.difference,
        studio_perplexity=_compute_perplexity(sums.nats_studio, sums.known),
        file_perplexity=_compute_perplexity(sums.nats_file, sums.known),
        same_stops=same_stops,
        same_template=same_template,
        limits=limits,
        examples=tuple(examples),
        created=time.time(),
    )


def _compute_perplexity(nats: float, tokens: int) -> float:
    return math.exp(min(nats / tokens, 700.0)) if tokens else 0.0
