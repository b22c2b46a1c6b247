"""Checks, when a base is loaded, that every token id in use lies within its embedding; finds its eos and pad.

    what            where it is looked for, in this order
    eos             tokenizer, generation config, config; without one no answer would end: the base is refused
    pad             the same, then eos: batches are masked, so any token will do
    decoder start   config, generation config, bos of the config (of encoder-decoder bases)

A token that no text and no template can produce may lie beyond the embedding: Gemma 3 (text) has the token of
its images, which it cannot read. Every other id beyond it would end a forward pass, so the base is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from core.data.tokens.special_tokens import render_roles
from core.errors import BaseModelError

logger = logging.getLogger(__name__)

NAMED_TOKENS = 3  # in a message


def check_config(name: str, config: Any) -> None:
    """Checks, before the weights are read, the ids that would end in an error inside torch.

    Raises:
        BaseModelError: the padding id is not in the vocabulary.
    """
    rows, pad = getattr(config, "vocab_size", 0), getattr(config, "pad_token_id", None)
    if isinstance(rows, int) and isinstance(pad, int) and rows and pad >= rows:
        raise _out_of_range(name, "the pad_token_id of its config", pad, rows)


def complete_tokenizer(name: str, tokenizer: Any, model: Any, seq2seq: bool) -> None:
    """Gives the tokenizer its eos, its pad and, for an encoder-decoder base, its decoder start token.

    Args:
        name: of the base, as the user gave it.
        tokenizer: changed in place.

    Raises:
        BaseModelError: eos or the decoder start token is missing, or an id in use is beyond the embedding.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    sources = [("generation config", model.generation_config), ("config", model.config)]
    _check_head(name, model, rows)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = _find_token(name, tokenizer, "eos_token_id", sources, rows)
    if tokenizer.eos_token is None:
        raise BaseModelError(
            f"{name!r} has no end token: its tokenizer, generation config and config name no eos_token_id.",
            "Without one an answer never ends. Set eos_token in its tokenizer_config.json.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = (
            _find_token(name, tokenizer, "pad_token_id", sources, rows) or tokenizer.eos_token
        )
    _check(
        name,
        "the eos_token_id of its generation config",
        read_ids(model.generation_config, "eos_token_id"),
        rows,
    )
    for kind in ("eos", "pad", "bos"):
        _check(name, f"the {kind} token of its tokenizer", read_ids(tokenizer, f"{kind}_token_id"), rows)
    _check_vocabulary(name, tokenizer, rows)
    if seq2seq:
        start = _find_start(sources)
        if start is None:
            raise BaseModelError(
                f"{name!r} has no decoder_start_token_id.",
                "Set it in its config.json; T5 has 0, its pad token.",
            )
        _check(name, "its decoder_start_token_id", [start], rows)
        tokenizer.decoder_start_token_id = start


def read_ids(owner: Any, key: str) -> list[int]:
    """The ids under a key of a tokenizer or config: one, a list, or none. Negative ids mean none."""
    value = getattr(owner, key, None)
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


def _find_token(
    name: str, tokenizer: Any, key: str, sources: Iterable[tuple[str, Any]], rows: int
) -> str | None:
    """The first token that a config names under a key."""
    for where, source in sources:
        ids = read_ids(source, key)
        _check(name, f"the {key} of its {where}", ids, rows)
        tokens = [tokenizer.convert_ids_to_tokens(i) for i in ids]
        if found := next((t for t in tokens if t), None):
            return str(found)
    return None


def _find_start(sources: list[tuple[str, Any]]) -> int | None:
    (_, generation_config), (_, config) = sources
    for source, key in (
        (config, "decoder_start_token_id"),
        (generation_config, "decoder_start_token_id"),
        (config, "bos_token_id"),
    ):
        if ids := read_ids(source, key):
            return ids[0]
    return None


def _check(name: str, what: str, ids: Iterable[int], rows: int) -> None:
    for i in ids:
        if i >= rows:
            raise _out_of_range(name, what, i, rows)


def _check_head(name: str, model: Any, rows: int) -> None:
    """Checks that the model cannot write a token that it cannot read."""
    head = model.get_output_embeddings()
    outputs = int(getattr(head, "out_features", 0) or 0)
    if outputs > rows:
        raise BaseModelError(
            f"{name!r} can write {outputs:,} tokens, but its embedding has {rows:,} rows.",
            "Choose another copy of this base: head and embedding must have the same vocabulary.",
        )


def _check_vocabulary(name: str, tokenizer: Any, rows: int) -> None:
    """Checks the tokens that a text or the chat template can produce."""
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows}
    if not beyond:
        return
    added = tokenizer.added_tokens_decoder
    # A template may write a token as it stands, or put it together, as in '<|' + role + '|>'.
    template = str(tokenizer.chat_template or "") + render_roles(tokenizer)
    in_use = {
        i: token for i, token in beyond.items() if not (i in added and added[i].special) or token in template
    }
    if not in_use:
        logger.info("%s: %d special tokens beyond the embedding are never used", name, len(beyond))
        return
    first = ", ".join(f"{in_use[i]!r} ({i:,})" for i in sorted(in_use)[:NAMED_TOKENS])
    more = f" and {len(in_use) - NAMED_TOKENS:,} more" if len(in_use) > NAMED_TOKENS else ""
    raise BaseModelError(
        f"The tokenizer of {name!r} has ids up to {max(in_use):,}, but its embedding has only {rows:,} rows: "
        f"{first}{more}.",
        "Choose the tokenizer that belongs to these weights, or save the model again after "
        "model.resize_token_embeddings(len(tokenizer)).",
    )


def _out_of_range(name: str, what: str, token_id: int, rows: int) -> BaseModelError:
    return BaseModelError(
        f"{name!r} cannot be used: {what} must be below {rows:,}, the rows of its embedding, "
        f"got {token_id:,}.",
        "Correct it in the files of the base, or choose another copy.",
    )
