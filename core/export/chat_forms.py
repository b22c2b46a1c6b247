"""The form of a chat template, read from what it renders, and written as a template of Go for Ollama.

A template of Jinja is not translated. It is rendered for a few conversations, and what stands between the
messages is the form:

    [system] S [system to user] U1 [to answer] A1 [to question] U2 [last]
    [first]                     U1 [to answer] A1 [to question] U2 [last]

The form is used only where it gives the texts of further conversations exactly, so that a template with any
other rule is reported and never guessed. Templates of Jinja that end, trim or repeat messages in another way
do not have such a form.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

Message = dict[str, str]  # {"role", "content"}
Render = Callable[
    [list[Message]], str
]  # a conversation that ends with a question -> the prompt for its answer

QUESTION, ANSWER, SYSTEM = "user", "assistant", "system"
_WORDS = ("Kestrelone", "Juniperone", "Kestreltwo", "Marblesystem")  # that no template has
_DATES = ("%d %b %Y", "%d %B %Y", "%B %d, %Y", "%Y-%m-%d", "%d/%m/%Y")


@dataclass(frozen=True)
class ChatForm:
    """What stands before, between and after the messages of a conversation.

    Attributes:
        first: before the first question, in a conversation without a system message.
        to_answer: between a question and its answer.
        to_question: between an answer and the next question.
        last: after the last question.
        system: before the system message; None where the template takes none.
        system_to_user: between the system message and the first question.
        notes: what differs from the template, a sentence each.
    """

    first: str
    to_answer: str
    to_question: str
    last: str
    system: str | None = None
    system_to_user: str = ""
    notes: tuple[str, ...] = field(default=())

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation that ends with a question, as the template of Go renders it."""
        system = "\n\n".join(m["content"] for m in messages if m["role"] == SYSTEM)
        turns = [m for m in messages if m["role"] != SYSTEM]
        has_system = system and self.system is not None
        text = f"{self.system}{system}{self.system_to_user}" if has_system else self.first
        for index, message in enumerate(turns):
            if message["role"] == QUESTION:
                text += (self.to_question if index else "") + message["content"]
                text += self.last if index == len(turns) - 1 else self.to_answer
            else:
                text += message["content"]
        return text


def read_form(render: Render, start: str = "") -> ChatForm | None:
    """Reads the form of a chat template; None where it has none.

    Args:
        render: the template with the prompt for an answer; may raise for a system message.
        start: what the runtime itself puts before a prompt: the text of BOS, or "".
    """
    try:
        form = _read_turns(render)
        if form is None or not _agrees(form, render, with_system=False):
            return None
    except Exception:  # noqa: BLE001 - a template raises what it likes
        return None
    try:
        full = _read_system(form, render)
        if full is not None and _agrees(full, render, with_system=True):
            form = full
    except Exception:  # noqa: BLE001 - most often: it takes no system message
        full = None
    notes = [] if form.system is not None else ["The template takes no system message: SYSTEM has no effect."]
    if not _keeps_blanks(render):
        notes.append("The template trims blanks around a message, which Ollama keeps.")
    if any(date in (form.first + (form.system or "")) for date in _today()):
        notes.append("The template states today's date; the Modelfile states the day of the export.")
    return replace(_leave_out(form, start), notes=tuple(notes))


def format_go(form: ChatForm) -> str:
    """The form as a template of Go, over `.Messages` and `.System` as Ollama fills them."""
    first = _literal(form.first)
    if form.system is not None:
        head = f"{_literal(form.system)}{{{{ $.System }}}}{_literal(form.system_to_user)}"
        first = f"{{{{ if $.System }}}}{head}{{{{ else }}}}{first}{{{{ end }}}}"
    after = _literal(form.last)
    if form.last != form.to_answer:
        is_last = "eq (len (slice $.Messages $i)) 1"
        after = f"{{{{ if {is_last} }}}}{after}{{{{ else }}}}{_literal(form.to_answer)}{{{{ end }}}}"
    return (
        "{{ $first := true }}{{ range $i, $_ := .Messages }}"
        '{{ if eq .Role "user" }}'
        f"{{{{ if $first }}}}{first}{{{{ $first = false }}}}{{{{ else }}}}{_literal(form.to_question)}"
        "{{ end }}"
        f"{{{{ .Content }}}}{after}"
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ end }}{{ end }}'
    )


def _literal(text: str) -> str:
    """A text that Go prints as it is; braces would begin an action."""
    return text.replace("{{", '{{ "{{" }}')


def _talk(*contents: str, system: str = "") -> list[Message]:
    """A conversation of questions and answers in turn."""
    roles = (QUESTION, ANSWER)
    turns = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": SYSTEM, "content": system}, *turns] if system else turns


def _split(text: str, words: Sequence[str]) -> list[str] | None:
    """What stands around the words, which must occur once each and in this order."""
    parts = []
    for word in words:
        if text.count(word) != 1:
            return None
        before, _, text = text.partition(word)
        parts.append(before)
    return [*parts, text]


def _read_turns(render: Render) -> ChatForm | None:
    one, answer, two, _ = _WORDS
    parts = _split(render(_talk(one, answer, two)), (one, answer, two))
    return ChatForm(parts[0], parts[1], parts[2], parts[3]) if parts else None


def _read_system(form: ChatForm, render: Render) -> ChatForm | None:
    one, _, _, system = _WORDS
    parts = _split(render(_talk(one, system=system)), (system, one))
    return replace(form, system=parts[0], system_to_user=parts[1]) if parts else None


def _agrees(form: ChatForm, render: Render, with_system: bool) -> bool:
    """Whether the form gives the texts of conversations that it was not read from."""
    turns = ("What is 1 + 1?", 'It is "two".', "Why?\n\nIn two lines.", "Because.\n- one", "And {3}?")
    for count in (1, 3, 5):
        for system in ("", "Answer in one line.\nBe kind.") if with_system else ("",):
            talk = _talk(*turns[:count], system=system)
            if form.render(talk) != render(talk):
                return False
    return True


def _keeps_blanks(render: Render) -> bool:
    word = _WORDS[0]
    return f" {word} \n" in render(_talk(f" {word} \n"))


def _today() -> list[str]:
    today = datetime.date.today()
    return [today.strftime(form) for form in _DATES]


def _leave_out(form: ChatForm, start: str) -> ChatForm:
    """The form without what the runtime puts before a prompt."""
    if not start:
        return form
    system = form.system.removeprefix(start) if form.system is not None else None
    return replace(form, first=form.first.removeprefix(start), system=system)
