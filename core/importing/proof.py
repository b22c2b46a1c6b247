"""The proof of an import: the base against the adapter on one line, in text and in nats.

It shows what an import cannot know: an adapter that changes nothing, an adapter of another base, and the
form of the prompt that it was trained with.

Letters: T tokens of prompt and answer, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from core.data.tokens.rendering import render_chat
from core.errors import SpecError
from core.importing.findings import FormAnswer, Proof
from core.model.generate import encode_prompt, generate, inference_mode_for
from core.model.resident import Resident
from core.model.scoring import kl_divergence
from core.spec.mix import Mix, Sampling

ANSWER_TOKENS = 48
NOTHING, FAR = 1e-5, 5.0  # nats a token: the adapter changes nothing; it is far from the base
BASE_FORM = "the base's template"
# Forms that tools train with and do not save.
PLAIN_FORMS = {
    "plain text": "{line}",
    "Alpaca": "### Instruction:\n{line}\n\n### Response:\n",
    "ChatML": "<|im_start|>user\n{line}<|im_end|>\n<|im_start|>assistant\n",
}


def prove(
    resident: Resident,
    adapter_id: str,
    line: str,
    chat: bool = True,
    rendered: Sequence[tuple[str, str]] = (),
    with_forms: bool = False,
) -> Proof:
    """Answers one line with the base and with an adapter at weight 1.

    Args:
        chat: whether the line is a question, which the chat template surrounds; else it is continued.
        rendered: further forms of the prompt, as (label, text).
        with_forms: try the forms that tools train with and do not save.

    Raises:
        SpecError: the line is empty or too long. AdapterError: the adapter cannot be mixed.
    """
    mix = Mix(weights={adapter_id: 1.0})
    ids = encode_prompt(resident, line, chat, ANSWER_TOKENS)
    base_text, adapter_text = (text for text, _ in _answer(resident, [ids, ids], [Mix(), mix]))
    prompts = {BASE_FORM if chat else "plain text": ids}
    if chat and (with_forms or rendered):
        prompts.update(_encode_forms(resident, line, rendered, with_forms))
    answers = _answer(resident, [*prompts.values()], [mix] * len(prompts))
    forms = []
    for (form, prompt), (text, answer) in zip(prompts.items(), answers, strict=True):
        divergence, nats = _compare(resident, mix, prompt, answer)
        forms.append(FormAnswer(form, text, nats, divergence))
    own = forms[0].divergence
    best = max(forms, key=lambda f: f.divergence)
    if len(forms) > 1:
        forms = [replace(f, is_preferred=f is best) for f in forms]
    verdict, is_suspicious = _judge(own, best, len(forms) > 1)
    return Proof(
        line, base_text, adapter_text, own, verdict, is_suspicious, tuple(forms) if len(forms) > 1 else ()
    )


def _judge(divergence: float, best: FormAnswer, has_forms: bool) -> tuple[str, bool]:
    """What the numbers say, and whether something looks wrong."""
    if divergence < NOTHING and best.divergence < NOTHING:
        return "The adapter changes nothing on this line: it may be empty, or not the trained one.", True
    if divergence > FAR:
        return (
            f"The adapter changes {divergence:.2f} nats a token: so much usually means another base.",
            True,
        )
    text = f"The adapter changes {divergence:.3g} nats a token on this line."
    if has_forms and best.form not in (BASE_FORM, "plain text") and best.divergence > 2 * divergence:
        return (
            f"{text} It changes {best.divergence:.3g} with {best.form}: probably the form it was trained in.",
            True,
        )
    return text, False


def _answer(
    resident: Resident, prompts: Sequence[Sequence[int]], mixes: Sequence[Mix]
) -> list[tuple[str, list[int]]]:
    """(text, token ids) of the greedy answer of each mix, all in one batch."""
    states: list[Any] = []
    sampling = Sampling(max_new_tokens=ANSWER_TOKENS, temperature=0.0)
    for states in generate(resident, list(prompts), mixes, [sampling] * len(mixes)):  # noqa: B007
        pass
    return [(s.column(resident.base.tokenizer).text, list(s.ids)) for s in states]


def _compare(
    resident: Resident, mix: Mix, prompt: Sequence[int], answer: Sequence[int]
) -> tuple[float, float]:
    """(KL(adapter || base), surprise of the adapter at its own answer), both in nats a token."""
    device = resident.base.device
    resident.load_adapters([mix])
    with inference_mode_for(resident, resident.rows([Mix(), mix])):
        if resident.base.family.seq2seq:
            start = resident.model.config.decoder_start_token_id
            decoder = torch.tensor([[start, *answer]] * 2, device=device)
            encoder = torch.tensor([list(prompt)] * 2, device=device)
            logits = resident.model(input_ids=encoder, decoder_input_ids=decoder).logits
        else:
            ids = torch.tensor([[*prompt, *answer]] * 2, device=device)
            logits = resident.model(input_ids=ids).logits[:, len(prompt) - 1 :]  # (2, answer + 1, V)
        base, adapter = logits.float().cpu()
    known = resident.model.get_input_embeddings().weight.shape[0]  # without tokens that a tool added
    divergence = kl_divergence(adapter[:, :known], base[:, :known]) / len(adapter)
    if not answer:
        return divergence, 0.0
    targets = torch.tensor(list(answer))
    nats = torch.nn.functional.cross_entropy(adapter[: len(answer)], targets)
    return divergence, float(nats)


def _encode_forms(
    resident: Resident, line: str, rendered: Sequence[tuple[str, str]], with_forms: bool
) -> dict[str, list[int]]:
    """Further forms of a prompt -> token ids; forms that are too long or equal to another one stay out."""
    tokenizer = resident.base.tokenizer
    texts = dict(rendered)
    own = render_chat(tokenizer, [{"role": "user", "content": line}], add_generation_prompt=True)
    if with_forms:
        texts["the base's template with line breaks"] = _add_line_breaks(own, tokenizer.all_special_tokens)
        texts.update({form: text.format(line=line) for form, text in PLAIN_FORMS.items()})
    forms: dict[str, list[int]] = {}
    seen = {own}
    for form, text in texts.items():
        if text in seen:
            continue
        seen.add(text)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if ids and len(ids) + ANSWER_TOKENS <= resident.base.context:
            forms[form] = ids
    return forms


def _add_line_breaks(text: str, special: Sequence[str]) -> str:
    """Puts a line break after every special token that has none, as many templates do."""
    marks = "|".join(re.escape(t) for t in sorted(special, key=len, reverse=True) if t)
    return re.sub(rf"({marks})(?!\n)", r"\1\n", text) if marks else text


def check_line(line: str) -> str:
    """Checks a line to compare, and returns it.

    Raises:
        SpecError: it is empty.
    """
    if not line.strip():
        raise SpecError("The line to compare is empty.", "Write a question that the adapter was trained for.")
    return line
