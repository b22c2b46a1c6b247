"""The prompt of Mix and Compare: its field, chat or continuing a text, and prompts to try.

    Prompt  [                                        ]
    Enter sends ...          ( Chat | Continue the text )
    Try a held-out question: (chip) (chip) (chip)

What is suggested follows from the adapters that are on, until the user types or chooses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from studio import events, prompt_chips
from studio.components.field_errors import FieldErrors
from studio.tree import Node, node, view

SEND_HINT = "Enter sends, Shift+Enter starts a new line."
# In the browser, because the user may be typing: a suggestion fills an empty field, and replaces an earlier
# suggestion, until a conversation has begun.
SUGGEST = """(prompt, suggestion, asked) => {
  const known = (window.studio.suggestedPrompts ??= {});
  if (asked || (prompt && prompt !== known["NAME"])) return prompt;
  known["NAME"] = suggestion;
  return suggestion;
}"""


@dataclass(frozen=True)
class Composer:
    """The components of a prompt.

    Attributes:
        name: of its tab; the ids of its elements begin with it.
        suggestion: holds a prompt to begin with. Hidden.
        has_chosen_mode: whether the user has chosen between chat and continuing a text. Hidden.
    """

    name: str
    prompt: gr.Textbox
    continue_text: gr.Radio
    chips: gr.HTML
    suggestion: gr.Textbox
    has_chosen_mode: gr.Checkbox

    @property
    def outputs(self) -> list[Any]:
        """The components that `describe_prompt` returns, in their order."""
        return [self.chips, self.continue_text, self.suggestion]

    @property
    def mode(self) -> list[Any]:
        """The last two arguments of `describe_prompt`."""
        return [self.continue_text, self.has_chosen_mode]


def composer(name: str, placeholder: str) -> Composer:
    """Makes the components.

    Args:
        name: of the tab, in lower case.
    """
    with gr.Group(elem_classes="plain composer"):
        prompt = gr.Textbox(
            label="Prompt", lines=1, max_lines=8, placeholder=placeholder, elem_id=f"{name}-prompt"
        )
        with gr.Row(elem_classes="under-prompt"):
            view(node("p", SEND_HINT, cls="quiet"), elem_classes="send-hint")
            continue_text = gr.Radio(
                [("Chat", False), ("Continue the text", True)],
                value=False,
                label="How the prompt is read",
                show_label=False,
                container=False,
                elem_classes="mode",
            )
    chips = view(elem_id=f"{name}-chips")
    suggestion, has_chosen = gr.Textbox(visible=False), gr.Checkbox(False, visible=False)
    return Composer(name, prompt, continue_text, chips, suggestion, has_chosen)


def wire(made: Composer, engine: Engine, errors: FieldErrors, asked: gr.Textbox | None = None) -> None:
    """Connects the chips, the mode and the suggestion.

    Args:
        errors: of the prompt; a chip removes them.
        asked: holds the last prompt, if it leaves its field.
    """
    made.suggestion.change(
        fn=None,
        inputs=[made.prompt, made.suggestion, *([asked] if asked else [])],
        outputs=[made.prompt],
        js=SUGGEST.replace("NAME", made.name),
        api_visibility="private",
    )
    made.continue_text.input(
        fn=None, outputs=[made.has_chosen_mode], js="() => true", api_visibility="private"
    )
    chosen = [made.prompt, made.continue_text]
    events.bind(made.chips.act, engine, take_chip, None, chosen, errors=errors).then(
        fn=None,
        js=f"() => document.querySelector('#{made.name}-prompt textarea')?.focus()",
        api_visibility="private",
    )


def take_chip(engine: Engine, event: gr.EventData) -> tuple[Any, ...]:
    """Puts a prompt to try into the field."""
    return prompt_chips.read_chip(event)


def describe_prompt(
    engine: Engine, adapter_ids: Iterable[str], continue_text: bool, has_chosen_mode: bool
) -> tuple[Node | None, Any, str]:
    """What follows from the adapters that are on.

    Returns:
        the prompts to try, whether a prompt is continued as a text, and the prompt to begin with.
    """
    active = list(adapter_ids)
    chips = prompt_chips.list_chips(engine, active)
    mode: Any = gr.skip()
    if not has_chosen_mode and (suggested := prompt_chips.suggest_mode(engine, active)) != continue_text:
        mode = suggested
    return prompt_chips.render_chips(chips), mode, chips[0].text if chips else ""
