"""Answers of an OpenAI-compatible address, for the rows of an experiment that have one.

The key comes from the environment of the process, by the name that the row gives. It is never stored, and it
is left out of every message.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import StudioError
from core.spec.experiment import ExperimentRow
from core.store.json_text import parse_object

ATTEMPTS = 3
PAUSE_SECONDS = 1.0  # before the second attempt; twice as long before the third
TIMEOUT_SECONDS = 120.0
ANSWER_BYTES = 4 << 20  # of a response, at most
RETRIED = (408, 409, 429, 500, 502, 503, 504)


class AddressError(StudioError):
    """The address did not answer; the cell keeps its answers and continues later."""


@dataclass(frozen=True)
class AddressAnswer:
    """What an address answered; `tokens` is 0 where it does not say."""

    text: str
    tokens: int
    seconds: float
    reason: str


def ask_address(
    row: ExperimentRow, key: str, messages: Sequence[dict[str, Any]], max_new_tokens: int
) -> AddressAnswer:
    """Sends a conversation to the address of a row.

    Raises:
        AddressError: it cannot be reached, refuses the request, or answers with something else.
    """
    import httpx

    body = {"model": row.model, "messages": list(messages), "temperature": 0, "max_tokens": max_new_tokens}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        begin = time.perf_counter()
        try:
            status, content = _post(f"{row.address.rstrip('/')}/chat/completions", body, headers)
        except httpx.HTTPError as e:
            problem = f"could not be reached ({type(e).__name__})"
            continue
        if status == 200:
            return _read_answer(row, content, time.perf_counter() - begin)
        problem = f"answered with the status {status}"
        if status not in RETRIED:
            break
    raise AddressError(
        f"The address {row.address} {problem}.",
        "The answers so far are kept. Continue the experiment when the address answers.",
    )


def _post(url: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, bytes]:
    """(status, content) of a request; redirects are not followed, so that a key stays with its address."""
    import httpx

    with (
        httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False) as client,
        client.stream("POST", url, json=body, headers=headers) as response,
    ):
        content = b""
        for block in response.iter_bytes():
            content += block
            if len(content) > ANSWER_BYTES:
                raise httpx.RequestError("the response is too long")
        return response.status_code, content


def _read_answer(row: ExperimentRow, content: bytes, seconds: float) -> AddressAnswer:
    try:
        value = parse_object(content)
        choice = value["choices"][0]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError
        usage = value.get("usage") or {}
        tokens = usage.get("completion_tokens", 0)
        reason = {"stop": "end", "length": "length"}.get(str(choice.get("finish_reason")), "end")
        return AddressAnswer(text.strip(), tokens if isinstance(tokens, int) else 0, seconds, reason)
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise AddressError(
            f"The address {row.address} answered with something that is not a chat completion.",
            "Check that the address is OpenAI-compatible, and ends before /chat/completions.",
        ) from e
