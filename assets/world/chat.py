"""The chat format of the embedded base: special tokens, chat template, and the same format in Python."""

SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render(turns: list[str], *, system: str | None = None) -> str:
    """Renders a conversation as `TEMPLATE` does; the turns alternate, starting with the user."""
    head = f"{SYSTEM}{system}{END}" if system else ""
    return head + "".join(f"{(USER, ASSISTANT)[i % 2]}{turn}{END}" for i, turn in enumerate(turns))
