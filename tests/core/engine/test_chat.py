"""Conversations: earlier turns are encoded as in training; the oldest ones that do not fit are left out."""

from __future__ import annotations

import pytest

from core.data.tokens.encoding import encode_chat
from core.engine import Engine
from core.engine.chat import _encode_conversation
from core.errors import SpecError
from core.spec.mix import Mix, Sampling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory):
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), quantization="none", device="cpu") as made:
        made.bases.current(wait=True)
        yield made


def conversation(exchanges: int, system: str = "") -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for i in range(exchanges):
        messages.append({"role": "user", "content": f"Where is lamp {i}?"})
        messages.append({"role": "assistant", "content": f"In the north room {i}."})
    return [*messages, {"role": "user", "content": "And the bell?"}]


@pytest.mark.parametrize("exchanges, system", [(0, ""), (1, ""), (3, ""), (2, "Be brief.")])
def test_a_conversation_that_fits_is_the_prompt_of_a_training_row(engine, exchanges, system):
    resident, messages = engine.resident_base.peek(), conversation(exchanges, system)
    ids, left_out = _encode_conversation(resident, messages, True, 16, False)
    assert left_out == 0
    assert ids == encode_chat(resident.base.tokenizer, messages, add_generation_prompt=True)


@pytest.mark.parametrize("room", [40, 90, 140, 200])
def test_the_oldest_questions_are_left_out_and_the_system_text_stays(engine, room):
    resident, messages = engine.resident_base.peek(), conversation(20, "Be brief.")
    context, tokenizer = resident.base.context, resident.base.tokenizer
    ids, left_out = _encode_conversation(resident, messages, True, context - room, False)
    rest = [messages[0], *messages[1 + 2 * left_out :]]
    assert ids == encode_chat(tokenizer, rest, add_generation_prompt=True) and len(ids) <= room
    assert 0 < left_out <= 20
    fuller = [messages[0], *messages[1 + 2 * (left_out - 1) :]]
    assert len(encode_chat(tokenizer, fuller, add_generation_prompt=True)) > room, "no more than necessary"


def test_a_question_that_is_too_long_alone_is_refused(engine):
    messages = [*conversation(2), {"role": "assistant", "content": "x"}]
    messages.append({"role": "user", "content": "lamp " * 400})
    with pytest.raises(SpecError, match="together may have at most 256 tokens"):
        engine.chat.stream(messages, [Mix()], Sampling(max_new_tokens=4)).last()


def test_the_frames_say_how_much_was_left_out(engine):
    frame = engine.chat.stream(conversation(20), [Mix(), Mix()], Sampling(max_new_tokens=8)).last()
    assert frame.done and frame.left_out > 0 and len(frame.columns) == 2
    assert engine.chat.stream("Where?", [Mix()], Sampling(max_new_tokens=2)).last().left_out == 0


def test_a_continued_text_has_no_history(engine):
    resident = engine.resident_base.peek()
    ids, left_out = _encode_conversation(resident, conversation(3), False, 8, False)
    assert (ids, left_out) == (_encode_conversation(resident, "And the bell?", False, 8, False)[0], 0)


def test_a_suite_has_the_system_text_before_every_prompt(engine):
    def answers(system):
        stream = engine.chat.stream_suite(
            ["Where?", "Who?"], [Mix()], Sampling(max_new_tokens=6), system=system
        )
        return stream.last().answers

    assert answers("") != answers("The red lamp is kept in the north room.")
