"""The door between handlers and the page: every error becomes one toast, here and nowhere else.

Knows how an error is told to a person. Knows nothing of what the handlers do.
"""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from core.errors import StudioError

logger = logging.getLogger(__name__)
UNEXPECTED = "Something went wrong inside the studio. Nothing was lost; the log of the studio has the details."


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

    answered.__signature__ = inspect.Signature([inspect.Parameter("question", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)])  # type: ignore[attr-defined]
    return answered


def on(trigger: Callable[..., Any], engine: Any, fn: Callable[..., Any], inputs: Any = None, outputs: Any = None, **kwargs: Any) -> Any:
    """Wires one event: through the door, and not offered as an endpoint to strangers."""
    kwargs.setdefault("show_progress", "hidden")
    return trigger(door(fn, engine), inputs, outputs, api_visibility="private", **kwargs)


def any_of(triggers: Iterable[Any]) -> Callable[..., Any]:
    """Several triggers as one, for `on`."""
    return functools.partial(gr.on, list(triggers))


def look_again(event: Any) -> None:
    """After an event that changed something: the top of the page asks at once how things stand."""
    event.then(fn=None, js="() => window.studio.poke()", api_visibility="private")
