"""The door between handlers and the page: every error becomes one toast, here and nowhere else.

Knows how an error is told to a person. Knows nothing of what the handlers do.
"""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr

from core.errors import StudioError

logger = logging.getLogger(__name__)
UNEXPECTED = (
    "Something went wrong inside the studio. Nothing was lost; the log of the studio has the details."
)


def sentence(error: BaseException) -> str:
    """What a person is told: what happened and what to do."""
    return f"{error.what} {error.fix}".strip() if isinstance(error, StudioError) else UNEXPECTED


def plain(text: str) -> str:
    """A text for a toast, which is drawn as markup."""
    return html.escape(text)


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except StudioError as e:
        # A toast is drawn as markup, and the sentence may quote a file: it is escaped here, once.
        raise gr.Error(plain(sentence(e)), title="Not done", print_exception=False) from e
    except Exception as e:
        logger.exception("The handler %s failed", name)
        raise gr.Error(UNEXPECTED, title="Not done", print_exception=False) from e


def door(fn: Callable[..., Any], engine: Any) -> Callable[..., Any]:
    """Binds a handler's first argument to the engine and turns its errors into toasts.

    Args:
        fn: a plain function or generator function `(engine, *values)`.
        engine: what it is given first.
    """
    if inspect.isgeneratorfunction(fn):

        @functools.wraps(fn)
        def opened(*values: Any) -> Any:
            with _told(fn.__name__):
                yield from fn(engine, *values)
    else:

        @functools.wraps(fn)
        def opened(*values: Any) -> Any:
            with _told(fn.__name__):
                return fn(engine, *values)

    own = inspect.signature(fn)
    opened.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])  # type: ignore[attr-defined]
    return opened


def asked(fn: Callable[..., Any], engine: Any) -> Callable[[Any], dict[str, Any]]:
    """The same for functions that the page's own JavaScript calls: an error is `{"error": sentence}`."""

    @functools.wraps(fn)
    def answered(question: Any = None) -> dict[str, Any]:
        try:
            found: dict[str, Any] = fn(engine, question if isinstance(question, dict) else {})
            return found
        except StudioError as e:
            return {"error": sentence(e)}
        except Exception:
            logger.exception("The server function %s failed", fn.__name__)
            return {"error": UNEXPECTED}

    answered.__signature__ = inspect.Signature(
        [inspect.Parameter("question", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)]
    )  # type: ignore[attr-defined]
    return answered


def on(
    trigger: Callable[..., Any],
    engine: Any,
    fn: Callable[..., Any],
    inputs: Any = None,
    outputs: Any = None,
    **kwargs: Any,
) -> Any:
    """Wires one event: through the door, and not offered as an endpoint to strangers."""
    kwargs.setdefault("show_progress", "hidden")
    return trigger(door(fn, engine), inputs, outputs, api_visibility="private", **kwargs)


def follow(
    trigger: Callable[..., Any], engine: Any, fn: Callable[..., Any], inputs: Any = None, outputs: Any = None
) -> Any:
    """Wires what follows from an event, as others may do from the same: each time it is answered, one answer after the other.

    Gradio's "once" would drop a change that comes during an answer. Its "always_last", which is what `.change` gets
    unless told otherwise, is for events with one listener: gradio 6.31 fires the whole event again, and two listeners
    that overlap keep each other going for ever.
    """
    return on(trigger, engine, fn, inputs, outputs, trigger_mode="multiple", concurrency_limit=1)


class Together:
    """Handlers of many tabs that follow from the same event, asked in one question.

    Whenever an event begins, goes on or ends, Gradio's client (6.31) goes through every component that any event has
    touched: a tenth of a second for each event on a small machine. So a dozen lists are one event, not a dozen.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Callable[..., Any], Any, list[Any]]] = []
        self._after: list[tuple[Callable[..., Any] | str, Any, Any]] = []

    def add(self, fn: Callable[..., Any], inputs: Any = None, outputs: Sequence[Any] = ()) -> None:
        """One more handler: a plain function, whose `inputs` are a list (values) or a set (one dict of them), as for Gradio's events."""
        self._parts.append((fn, inputs or [], list(outputs)))

    def then(self, fn: Callable[..., Any] | str, inputs: Any = None, outputs: Any = None) -> None:
        """A handler, or a function of JavaScript, that is asked when the answers of all those of `add` are on the page."""
        self._after.append((fn, inputs, outputs))

    def wire(self, trigger: Any, engine: Any) -> None:
        """Connects them to the event, once all of them are added."""
        inputs = {c for _, taken, _ in self._parts for c in taken}
        outputs = list(dict.fromkeys(c for *_, shown in self._parts for c in shown))
        event = follow(trigger, engine, self._answer, inputs, outputs)
        for fn, taken, shown in self._after:
            if isinstance(fn, str):
                event.then(None, taken, shown, js=fn, api_visibility="private")
            else:
                follow(event.then, engine, fn, taken, shown)

    def _answer(self, engine: Any, values: dict[Any, Any]) -> dict[Any, Any]:
        """Every handler's answer; one that fails is told, and keeps none of the others from being shown."""
        out: dict[Any, Any] = {}
        for fn, taken, shown in self._parts:
            given = [{c: values[c] for c in taken}] if isinstance(taken, set) else [values[c] for c in taken]
            try:
                said = door(fn, engine)(*given)
            except gr.Error as e:
                gr.Warning(e.message, title=e.title)
                continue
            by_component = (
                isinstance(said, dict) and bool(said) and all(isinstance(k, gr.blocks.Block) for k in said)
            )
            out.update(said if by_component else zip(shown, said if len(shown) > 1 else [said], strict=True))
        return out


def any_of(triggers: Iterable[Any]) -> Callable[..., Any]:
    """Several triggers as one, for `on`."""
    return functools.partial(gr.on, list(triggers))


def look_again(event: Any) -> None:
    """After an event that changed something: the top of the page asks at once how things stand."""
    event.then(fn=None, js="() => window.studio.poke()", api_visibility="private")
