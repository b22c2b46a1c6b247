"""Compares a base that was converted from a GGUF file with llama.cpp on the same file (package xllamacpp).

    python benchmarks/gguf_bases.py FILE.gguf [--base FOLDER] [--tokens 32] [--json]

Token ids must be equal for every text. Greedy answers are compared token by token, with the ids of our chat
template as the prompt of both: llama.cpp computes with the quantized weights and quantized activations, so
that its answers part from those of the bfloat16 folder after some tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.gguf.conversion import Request, convert, status_of

TEXTS = (
    "The lamp is in room 1234, isn't it?",
    "In 2024 there were 1,234,567.89 of them; 007 and 3.14159.",
    "  two blanks,\ta tab,\n\n\nthree line ends   and blanks at the end   ",
    "def add(a, b):\n    return a + b  # sum\n\n\nclass A:\n\tpass",
    "Grüße aus Köln! Été à la plage. Żółw. Ελληνικά. Русский текст.",
    "中文没有空格。日本語のテキスト、한국어 문장.",
    "🙂🙃 👨‍👩‍👧‍👦 e\u0301 vs é; \u00a0no-break; \u200bzero width",
    "don't DON'T we'll I'M it's 'quoted' ''",
    'http://example.org/path?x=1&y=2#part <b>bold</b> {"a": [1, 2]}',
    "AAAAaaaaBBBB camelCaseWords snake_case_words SHOUTING",
    "ﬁne ½ ² Ⅷ ① % ‰ € £ ¥ © ® ™ … — –",
    "",
    " ",
    "\n",
    "a",
)
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "How do I boil an egg?",
    "What is 12 plus 30?",
    "Name three colours.",
    "Explain what a library is to a child.",
)


class LlamaCpp:
    """llama.cpp on one file, as a server in this process."""

    def __init__(self, path: Path, context: int = 512) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx = context
        settings.n_parallel = 1
        settings.warmup = False
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        self._server = xllamacpp.Server(settings)

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text; control tokens written out count as such."""
        found = self._post("tokenize", {"content": text, "add_special": True, "parse_special": True})
        return list(found["tokens"])

    def continue_greedily(self, ids: list[int], tokens: int) -> list[int]:
        """The most likely ids after a prompt."""
        wanted = {
            "prompt": ids,
            "n_predict": tokens,
            "temperature": 0,
            "cache_prompt": False,
            "ignore_eos": True,
            "return_tokens": True,
            "repeat_penalty": 1.0,
        }
        return list(self._post("completion", wanted)["tokens"])

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._server.listening_address}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def list_control_texts(tokenizer: Any) -> list[str]:
    """Texts with the control tokens of a tokenizer between words."""
    return [f"one{token}two {token} three" for token in tokenizer.all_special_tokens[:8]]


def compare_ids(engine: LlamaCpp, tokenizer: Any) -> list[str]:
    """The texts whose ids differ."""
    texts = [*TEXTS, *list_control_texts(tokenizer)]
    return [text for text in texts if engine.tokenize(text) != tokenizer(text).input_ids]


def compare_answers(engine: LlamaCpp, model: Any, prompts: list[list[int]], tokens: int) -> list[int]:
    """How many tokens of each greedy answer are equal from its start."""
    import torch

    equal = []
    for prompt in prompts:
        with torch.inference_mode():
            ours = model.generate(
                torch.tensor([prompt]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
            )[0, len(prompt) :].tolist()
        theirs = engine.continue_greedily(prompt, tokens)
        equal.append(next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), tokens))
    return equal


def main() -> None:
    """Converts where no folder is given, compares, and prints."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("file", type=Path)
    p.add_argument("--base", type=Path, help="Folder that the file was converted into.")
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.base or Path(temporary)
        if not args.base:
            with open(args.file, "rb") as file:
                convert(Request(str(args.file), args.file.name, status_of(file), str(folder)))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        engine = LlamaCpp(args.file)
        differing = compare_ids(engine, tokenizer)
        prompts = []
        for question in QUESTIONS:
            ids = tokenizer(question).input_ids
            if tokenizer.chat_template:
                chat = [{"role": "user", "content": question}]
                text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
                ids = tokenizer(text, add_special_tokens=False).input_ids
            prompts.append(ids)
        equal = compare_answers(engine, model, prompts, args.tokens)
    result = {"texts": len(TEXTS) + 8, "differing": differing, "tokens": args.tokens, "equal_tokens": equal}
    for text in differing:
        print(f"ids differ: {text!r}")
    print(f"Greedy answers are equal for {equal} of {args.tokens} tokens.")
    if args.json:
        print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
