"""Chat templates become templates of Go that render the same prompts, or are reported as unknown."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from core.export.chat_forms import ChatForm, format_go, read_form
from core.gguf.templates import FORMS
from core.model.families import JOINED_TEMPLATE, PLAIN_TEMPLATE
from tests.conftest import CHATML
from tests.core.export.go_template import render_go

QWEN = (
    "{% if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\n' + messages[0]['content'] + "
    "'<|im_end|>\n' }}{% else %}{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ '<|im_start|>' + m['role'] + '\n' + "
    "m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = CHATML.replace("{{ '<|assistant|>\n' }}", "{{ '<|assistant|>\n<think>\n\n</think>\n\n' }}")
LLAMA2 = (
    "{% set s = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if s and loop.index0 == 1 %}{{ '<<SYS>>\n' + s + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ m['content'].strip() + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}[assistant]"
)
# Mistral's: the system message goes to the last question.
LATE_SYSTEM = (
    "{% set s = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}{{ bos_token }}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% if s and loop.last %}{{ s + '\n\n' }}{% endif %}{{ m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
BRACES = (
    "{% for m in messages %}{{ '{{' + m['role'] + '}} ' + m['content'] + ' {{/}}' }}{% endfor %}{{ '{{a}}' }}"
)
TEMPLATES = {
    **{form.marks[0]: form.template for form in FORMS},
    "qwen": QWEN,
    "thinking": THINKING,
    "llama2": LLAMA2,
    "plain": PLAIN_TEMPLATE,
    "joined": JOINED_TEMPLATE,
    "ours": CHATML,
    "braces": BRACES,
}
TALKS = [
    [("user", "What is 2 + 2?")],
    [("user", "Hello"), ("assistant", "Hi.\n\nHow are you?"), ("user", 'Say "yes" {{ now }}')],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
    [("system", "Be brief."), ("user", "Hello")],
    [("system", "Be brief.\nAlways."), ("user", "Hello"), ("assistant", "Hi"), ("user", "Bye")],
]


def raise_exception(text: str) -> None:
    raise ValueError(text)


def make_render(template: str) -> Any:
    """As transformers renders a template, with the prompt for an answer."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    compiled = environment.from_string(template)
    return lambda messages: compiled.render(
        messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )


def to_messages(talk: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in talk]


@pytest.mark.parametrize("name", TEMPLATES)
def test_go_template_renders_what_the_jinja_template_renders(name) -> None:
    render = make_render(TEMPLATES[name])
    form = read_form(render)
    assert form is not None and form.system is not None
    for talk in map(to_messages, TALKS):
        assert render_go(format_go(form), talk) == render(talk) == form.render(talk)


@pytest.mark.parametrize("name", ["<|start_header_id|>", "<start_of_turn>", "[INST]", "llama2"])
def test_what_the_runtime_puts_before_a_prompt_is_left_out(name) -> None:
    render = make_render(TEMPLATES[name])
    form = read_form(render, start="<s>")
    assert form is not None
    for talk in map(to_messages, TALKS):
        assert "<s>" + render_go(format_go(form), talk) == render(talk)


@pytest.mark.parametrize("template", [NO_SYSTEM, LATE_SYSTEM], ids=["refuses", "late"])
def test_templates_without_a_plain_system_message_say_that(template) -> None:
    form = read_form(make_render(template))
    assert form is not None and form.system is None
    assert "takes no system message" in form.notes[0]
    for talk in map(to_messages, TALKS[:3]):
        assert render_go(format_go(form), talk) == make_render(template)(talk)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[-1]['content'] }}",  # the last message only
        "{% for m in messages %}{{ loop.index ~ m['content'] }}{% endfor %}",  # numbers the turns
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{{ raise_exception('always') }}",
        "{% for m in messages %}{{ m['content'] * 2 }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | replace('1', 'one') }}|{% endfor %}",
    ],
)
def test_templates_of_another_form_are_not_guessed(template) -> None:
    assert read_form(make_render(template)) is None


def test_dates_and_trimmed_blanks_are_noted() -> None:
    today = datetime.date.today().strftime("%d %b %Y")
    form = read_form(make_render(f"Today: {today}\n" + LLAMA2))
    assert form is not None
    assert any("today's date" in note for note in form.notes)
    assert any("trims blanks" in note for note in form.notes)


def test_plain_form_is_a_short_template() -> None:
    form = ChatForm("<u>", "</u><a>", "</a><u>", "</u><a>")
    assert format_go(form) == (
        "{{ $first := true }}{{ range $i, $_ := .Messages }}"
        '{{ if eq .Role "user" }}{{ if $first }}<u>{{ $first = false }}{{ else }}</a><u>{{ end }}'
        '{{ .Content }}</u><a>{{ else if eq .Role "assistant" }}{{ .Content }}{{ end }}{{ end }}'
    )


GO_PROGRAM = """package main
import ("encoding/json"; "os"; "text/template")
type message struct { Role, Content string }
type job struct { Template, System string; Messages []message }
func main() {
	var jobs []job
	json.NewDecoder(os.Stdin).Decode(&jobs)
	var texts []string
	for _, j := range jobs {
		var b buffer
		err := template.Must(template.New("t").Parse(j.Template)).Execute(&b, map[string]any{
			"System": j.System, "Messages": j.Messages})
		if err != nil { panic(err) }
		texts = append(texts, string(b))
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
type buffer []byte
func (b *buffer) Write(p []byte) (int, error) { *b = append(*b, p...); return len(p), nil }
"""


@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed")
def test_go_itself_renders_the_same_texts(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(GO_PROGRAM)
    jobs, expected = [], []
    for template in TEMPLATES.values():
        render = make_render(template)
        form = read_form(render)
        assert form is not None
        for talk in map(to_messages, TALKS):
            system = "".join(m["content"] for m in talk if m["role"] == "system")
            messages = [{"Role": m["role"], "Content": m["content"]} for m in talk]
            jobs.append({"Template": format_go(form), "System": system, "Messages": messages})
            expected.append(render(talk))
    out = subprocess.run(
        ["go", "run", "main.go"],
        cwd=tmp_path,
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert json.loads(out.stdout) == expected
