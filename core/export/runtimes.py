"""The runtimes that exported files are reopened in: plain peft, plain transformers, and llama.cpp.

They are used in a process of their own (`core.export.check_job`): they take the memory of a whole model, and
llama.cpp ends its process on some errors. Nothing of the studio's mixing is used here.

Letters: T positions, V vocabulary, K the most likely tokens that llama.cpp tells.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from core.errors import StudioError
from core.export.certificate import Predictions
from core.export.reference import ANSWER_TOKENS, Reference
from core.gguf.header import read_header

LLAMA_CPP = "xllamacpp"
TOP_TOKENS = 64  # K
REQUEST_SECONDS = 600


class TransformersRuntime:
    """A merged model in plain transformers, or a base with an adapter in plain peft; computed in fp32.

    Args:
        folder: of the model, or of the base.
        adapter: a folder in PEFT's layout, or None.

    Raises:
        StudioError: the files cannot be loaded.
    """

    def __init__(self, folder: Path, reference: Reference, adapter: Path | None = None) -> None:
        self.name = f"transformers {importlib.metadata.version('transformers')}"
        auto = AutoModelForSeq2SeqLM if reference.is_seq2seq else AutoModelForCausalLM
        try:
            # The tokenizer of an adapter's folder is the base's.
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = auto.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
            )
            if adapter is not None:
                from peft import PeftModel

                self.name = f"peft {importlib.metadata.version('peft')}"
                model = PeftModel.from_pretrained(model, str(adapter))
        except Exception as e:  # of transformers and peft, of many classes
            raise StudioError(f"The files cannot be loaded: {type(e).__name__}: {e}") from e
        self._model, self._reference = model.eval(), reference
        self.template: str | None = str(tokenizer.chat_template or "")
        self.stops = _read_stops(self._model, tokenizer)

    def predict(self, prompt: Sequence[int], answer: Sequence[int], count: int) -> Predictions:
        """Predicts the tokens after the last `count` positions of prompt and answer."""
        if self._reference.is_seq2seq:
            decoder = torch.tensor([[self._reference.start, *answer]])
            inputs = {"input_ids": torch.tensor([list(prompt)]), "decoder_input_ids": decoder}
        else:
            inputs = {"input_ids": torch.tensor([[*prompt, *answer]])}
        with torch.inference_mode():
            logits = self._model(**inputs).logits
        return Predictions(logits=logits[0, -count:].float().numpy())

    def answer(self, prompt: Sequence[int], limit: int) -> list[int]:
        """The greedy answer, at most `limit` tokens, without its stop token."""
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                eos_token_id=list(self._reference.stops) or None,
                pad_token_id=0,
            )[0].tolist()
        new = found[1:] if self._reference.is_seq2seq else found[len(prompt) :]
        return _cut(new, self._reference.stops)


class LlamaCppRuntime:
    """A GGUF file in llama.cpp, with adapters at scales where there are any.

    Args:
        path: of the model.
        adapters: path of an adapter as GGUF -> its scale.

    Raises:
        StudioError: llama.cpp cannot load the files.
    """

    def __init__(self, path: Path, reference: Reference, adapters: Mapping[Path, float]) -> None:
        import xllamacpp

        self.name = f"llama.cpp ({LLAMA_CPP} {importlib.metadata.version(LLAMA_CPP)})"
        longest = max(len(p.prompt) for p in reference.prompts) + ANSWER_TOKENS + 2
        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx = max(256, longest)
        settings.n_parallel = 1
        settings.warmup = False
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = torch.get_num_threads()
        if adapters:
            settings.lora_adapters = [
                xllamacpp.CommonAdapterLoraInfo(str(file), scale) for file, scale in adapters.items()
            ]
        self._scales = [{"id": i, "scale": scale} for i, scale in enumerate(adapters.values())]
        self._reference = reference
        try:
            self._server = xllamacpp.Server(settings)
        except Exception as e:  # llama.cpp tells its reason in its own log only
            raise StudioError(f"llama.cpp cannot load the files: {e}") from e
        with open(path, "rb") as file:
            metadata = read_header(file, path.name).metadata
        self.template: str | None = str(metadata.get("tokenizer.chat_template", ""))
        eos = metadata.get("tokenizer.ggml.eos_token_id")
        ends = [eos, metadata.get("tokenizer.ggml.eot_token_id")]
        self.stops = tuple(sorted({end for end in ends if isinstance(end, int)}))

    def predict(self, prompt: Sequence[int], answer: Sequence[int], count: int) -> Predictions:
        """Predicts the tokens after the last `count` positions of prompt and answer, one after the other."""
        ids = [*prompt, *answer]
        found = np.full((count, TOP_TOKENS), -1, dtype=np.int64)
        values = np.full((count, TOP_TOKENS), np.nan)
        for row, end in enumerate(range(len(ids) - count + 1, len(ids) + 1)):
            tokens, top = self._complete(ids[:end], 1)
            if not top and not tokens:
                raise StudioError(f"llama.cpp predicts nothing after {end} tokens.")
            # It tells no probabilities of a token that ends within a character: only which one it is.
            top = top or [(tokens[0], math.nan)]
            found[row, : len(top)] = [token for token, _ in top]
            values[row, : len(top)] = [value for _, value in top]
        return Predictions(ids=found, logprobs=values)

    def answer(self, prompt: Sequence[int], limit: int) -> list[int]:
        """The greedy answer, at most `limit` tokens, without its stop token."""
        return _cut(self._complete(prompt, limit)[0], self._reference.stops)

    def _complete(self, ids: Sequence[int], tokens: int) -> tuple[list[int], list[tuple[int, float]]]:
        """(the ids that follow, the most likely first tokens with their log-probabilities)"""
        body: dict[str, Any] = {
            "prompt": list(ids),
            "n_predict": tokens,
            "temperature": 0,
            "n_probs": TOP_TOKENS,
            "cache_prompt": True,
            "ignore_eos": False,
            "return_tokens": True,
            "repeat_penalty": 1.0,
            "lora": self._scales,  # all of them by name: an empty list means the server's own
        }
        request = urllib.request.Request(
            f"{self._server.listening_address}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
            found = json.load(answer)
        top = found.get("completion_probabilities") or [{}]
        return list(found["tokens"]), [(t["id"], t["logprob"]) for t in top[0].get("top_logprobs", ())]


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def _cut(ids: list[int], stops: Sequence[int]) -> list[int]:
    """The ids before the first stop token."""
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


def _read_stops(model: Any, tokenizer: Any) -> tuple[int, ...]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    found = set(ends if isinstance(ends, (list, tuple)) else [ends]) | {tokenizer.eos_token_id}
    return tuple(sorted(end for end in found if end is not None))
