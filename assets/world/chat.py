"""The one written form of a conversation with the model.

Knows the marks of the turns. The chat template of the tokenizer is written to give the same text.
"""

SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render(turns: list[str], *, system: str | None = None) -> str:
    """A conversation as text; the turns alternate and the user speaks first."""
    head = f"{SYSTEM}{system}{END}" if system else ""
    return head + "".join(f"{(USER, ASSISTANT)[i % 2]}{turn}{END}" for i, turn in enumerate(turns))
