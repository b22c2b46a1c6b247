"""Foreign chat templates in a process of their own (T16): what they write, and their limits."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest

from core.data.tokens import rendering, template_process
from core.data.tokens.template_process import TEXT_LIMIT, TemplateProcesses, TemplateStopped, render
from tests.conftest import CHATML

MESSAGES = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
FOREIGN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"


class Tokenizer:
    """A tokenizer that counts what is rendered in this process."""

    special_tokens_map = {"eos_token": "<eos>"}

    def __init__(self, template: str) -> None:
        self.chat_template, self.calls = template, 0

    def get_chat_template(self) -> str:
        return self.chat_template

    def apply_chat_template(self, messages: Any, chat_template: str, **settings: Any) -> str:
        self.calls += 1
        return "here"


@pytest.fixture
def processes() -> Iterator[TemplateProcesses]:
    made = TemplateProcesses()
    yield made
    made.close(os.getpid())


def test_t16_only_a_known_template_is_rendered_in_this_process() -> None:
    known, foreign = Tokenizer(CHATML), Tokenizer(FOREIGN)
    assert (rendering.render_chat(known, MESSAGES), known.calls) == ("here", 1)
    assert rendering.render_chat(foreign, MESSAGES) == "<user>Q<eos><assistant>A<eos>"
    assert foreign.calls == 0


def test_a_child_renders_as_transformers_does() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (
        "{%- for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}"
        "{% if not thinking %}{% break %}{% endif %}{% endfor %}{{ strftime_now('%Y') | length }}"
        "{{ namespace(a=1).a }}\n"
    )
    for settings in ({"thinking": True}, {"thinking": False, "add_generation_prompt": True}):
        ours = render(template, MESSAGES, settings)
        assert ours == render_jinja_template([MESSAGES], chat_template=template, **settings)[0][0]


def test_the_words_of_a_template_are_its_error_and_are_cut() -> None:
    with pytest.raises(jinja2.TemplateError, match="^no system$") as caught:
        render("{{ raise_exception('no system') }}", MESSAGES, {})
    assert not isinstance(caught.value, TemplateStopped)
    with pytest.raises(jinja2.TemplateError) as caught:
        render("{{ raise_exception('no' * 900) }}", MESSAGES, {})
    assert len(str(caught.value)) == 300
    with pytest.raises(jinja2.TemplateError, match="Expected an expression"):
        render("{% for %}", MESSAGES, {})


def test_t16_a_template_over_a_limit_is_stopped_once(
    processes: TemplateProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = f"{{{{ 'x' * {TEXT_LIMIT + 1} }}}}"
    exact = f"{{{{ 'x' * {TEXT_LIMIT} }}}}"
    conversation = '[[{"role": "user", "content": "Q"}], {}]'
    assert len(processes.render(exact, conversation)) == TEXT_LIMIT
    (process,) = processes._idle
    with pytest.raises(TemplateStopped, match="writes too long a text"):
        processes.render(long, conversation)
    assert not processes._idle and process._process.returncode is not None
    monkeypatch.setattr(template_process, "_Process", None)  # it would not start another one
    with pytest.raises(TemplateStopped, match="before"):
        processes.render(long, conversation)


def test_t16_a_process_that_ends_is_replaced(processes: TemplateProcesses) -> None:
    conversation = '[[{"role": "user", "content": "Q"}], {}]'
    assert processes.render("a", conversation) == "a"
    processes._idle[0]._process.kill()
    processes._idle[0]._process.wait()
    with pytest.raises(TemplateStopped, match="10 s"):
        processes.render("b", conversation)
    assert processes.render("a", conversation) == "a" and len(processes._idle) == 1


def test_threads_never_share_a_process(processes: TemplateProcesses) -> None:
    found: dict[int, str] = {}

    def work(number: int) -> None:
        for _ in range(20):
            found[number] = processes.render(f"{number}", '[[{"role": "user", "content": "Q"}], {}]')

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert found == {n: str(n) for n in range(3)} and 1 <= len(processes._idle) <= 2


def test_conversations_of_one_shape_are_rendered_once() -> None:
    before = template_process._render.cache_info()
    tokenizer: Any = Tokenizer(FOREIGN)
    for question in ("Where?", "When?", "Why?"):
        turns = [rendering.Turn("user", (question,)), rendering.Turn("assistant", ("So.",))]
        text = rendering.fill(rendering.render(tokenizer, turns), turns).text
        assert text == f"<user>{question}<eos><assistant>So.<eos>"
    after = template_process._render.cache_info()
    assert after.misses - before.misses == 1 and after.hits - before.hits == 2


def test_a_fork_starts_processes_of_its_own() -> None:
    first = template_process._open_processes(os.getpid())
    assert template_process._open_processes(os.getpid()) is first
    closed = SimpleNamespace(end=lambda: pytest.fail("the processes of another process were ended"))
    other = TemplateProcesses()
    other._idle.append(closed)  # type: ignore[arg-type]
    other.close(os.getpid() + 1)
