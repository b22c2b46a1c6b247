"""A mix as a model of EleutherAI's lm-evaluation-harness, which is an optional extra: import this lazily.

    task ── requests ──> MixModel (the caller's thread) ── steps ──> run ──> the thread that owns the model
                         tokenizes as the harness's `hf` model       harness_scoring: forwards, answers

The figures are those of the harness's `hf` model with the adapter loaded by peft; `tests` and the harness's
own conventions for empty contexts, BOS and rolling windows come from its `TemplateLM` and its functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from core.evaluate.harness_scoring import (
    Answer,
    Continuation,
    Likelihood,
    make_sampling,
    score_continuations,
    write_answers,
)
from core.model.base import Base
from core.model.resident import Resident
from core.spec.mix import Mix

ANSWER_TOKENS = 256  # longest answer where a task sets none, as in the harness
Steps = Callable[[Resident], Iterator[Any]]  # yields progress, and last the result
Run = Callable[[Steps], Any]  # runs steps on the thread that owns the model, and returns their result


class MixModel(TemplateLM):  # type: ignore[misc]
    """A mix on the resident base, as the harness sees a model.

    Args:
        base: the resident base; of it, only the tokenizer and constants are read.
        mix: adapters with numbers as weights.
        run: runs steps on the thread that owns the model.
        longest: limit of generated answers in tokens, instead of the tasks' own; 0 keeps the tasks'.
    """

    def __init__(self, base: Base, mix: Mix, run: Run, longest: int = 0) -> None:
        super().__init__()
        self._base, self._mix, self._run, self._longest = base, mix, run, longest
        self.tokenizer = copy.deepcopy(base.tokenizer)  # a tokenizer serves one thread at a time
        # The harness's `hf` model generates with the penalty that the model's own settings name.
        settings = getattr(base.model, "generation_config", None)
        self._penalty = float(getattr(settings, "repetition_penalty", None) or 1.0)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context: BOS, else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once."""
        return self._base.context

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache of requests."""
        return str(self._base.name).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Encodes a text; a text that begins with the prefix token gets no second one."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        settings = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **settings))

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Scores continuations after their contexts; see the harness's `LM.loglikelihood`."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)  # type: ignore[no-any-return]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        found = self._score([Continuation(tuple(context), tuple(ids)) for _, context, ids in requests])
        answers = [(f.nats, f.is_greedy) for f in found]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Scores whole texts, in windows that each score new tokens only."""
        windows: list[Continuation] = []
        counts: list[int] = []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text)
            parts = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            found = [Continuation(*map(tuple, make_disjoint_window(part))) for part in parts]
            windows += found
            counts.append(len(found))
        scores = iter(self._score(windows))
        sums = [sum(next(scores).nats for _ in range(count)) for count in counts]
        for request, nats in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, nats)
        return sums

    def _score(self, requests: list[Continuation]) -> list[Likelihood]:
        found: list[Likelihood] = self._run(
            lambda resident: score_continuations(resident, self._mix, requests)
        )
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Answers prompts up to a stop string; see the harness's `LM.generate_until`."""
        answers = []
        for prompt, given in (request.args for request in requests):
            settings = {"repetition_penalty": self._penalty, **normalize_gen_kwargs(given, ANSWER_TOKENS)}
            answers.append(Answer(tuple(self.tok_encode(prompt)), make_sampling(settings, self._longest)))
        texts: list[str] = self._run(lambda resident: write_answers(resident, self._mix, answers))
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation in the base's chat template; a template without a system role gets none."""

        def render(messages: list[dict[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        try:
            return render(chat_history)
        except jinja2.exceptions.TemplateError:
            return render([m for m in chat_history if m["role"] != "system"])

    def get_model_info(self) -> Mapping[str, Any]:
        """What the harness records about the model."""
        return {
            "base": self._base.name,
            "base_fingerprint": self._base.fingerprint,
            "quantization": self._base.quantization,
            "mix": str(self._mix),
        }
