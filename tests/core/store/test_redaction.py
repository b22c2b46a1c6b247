"""Logs hold no secrets and no texts of users (T21), whichever logger and handler writes them."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.store.api_keys import PREFIX
from core.store.redaction import protect_logs, redact


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a foreign logger writes with a handler and a formatter of its own."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    logger = logging.getLogger("foreign.library")
    logger.addHandler(handler)
    restore = protect_logs()
    yield written
    restore()
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("key as-PLANTEDplanted_planted-planted00 used", "key as-… used"),
        ("hf_PLANTEDplantedplanted", "hf_…"),
        ("Authorization: Bearer PLANTED.x-y", "Authorization: Bearer …"),
        ("GET /?token=PLANTED&mix=a", "GET /?token=…&mix=a"),
        ('{"password": "PLANTED", "name": "ann"}', '{"password": "…", "name": "ann"}'),
        ("x-api-key: PLANTED", "x-api-key: …"),
        ("https://ann:PLANTED@example.org/x", "https://ann:…@example.org/x"),
    ],
)
def test_t21_secrets_are_replaced_and_the_rest_stays(log: io.StringIO, text: str, kept: str) -> None:
    logging.getLogger("foreign.library").error("a message: %s", text)
    assert log.getvalue() == f"foreign.library a message: {kept}\n"


@pytest.mark.parametrize("text", ["step 4/8, 120 tokens/s, loss 0.5", "pad_token: <|pad|>", "max_tokens=16"])
def test_figures_and_names_of_settings_stay(text: str) -> None:
    assert redact(text) == text


@given(st.text(alphabet="abcXYZ019_-", min_size=32, max_size=32), st.text(max_size=20))
def test_t21_a_key_never_passes_whatever_stands_beside_it(secret: str, beside: str) -> None:
    assert secret not in redact(f"{beside} {PREFIX}{secret}, {beside}")


def test_t21_a_traceback_names_places_and_no_texts_of_users(log: io.StringIO) -> None:
    def answer(prompt: str) -> None:
        try:
            {}[prompt]
        except KeyError as e:
            raise ValueError(f"no answer to {prompt}") from e

    prompt = "PLANTED"
    try:
        answer(prompt)
    except ValueError:
        logging.getLogger("foreign.library").exception("It failed")
    text = log.getvalue()
    assert "PLANTED" not in text and "in answer" in text
    assert (
        text.count("ValueError (its message is not logged)") == 1
        and "caused by:" in text
        and "KeyError" in text
    )


def test_the_factory_is_restored() -> None:
    before = logging.getLogRecordFactory()
    protect_logs()()
    assert logging.getLogRecordFactory() is before
