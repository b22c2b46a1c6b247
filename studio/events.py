"""Binds handlers to Gradio's events, checks the role of callers, and turns errors into toasts, in one place.

A handler is a plain function `(engine, *values)` that tests call without a browser. The role that it needs
stands in `studio.roles`.
"""

from __future__ import annotations

import functools
import html
import inspect
import itertools
import logging
import typing
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.components import Component
from gradio.context import Context, LocalContext

from core.engine.callers import Caller, act_for
from core.engine.worker import make_lock
from core.errors import AccessError, StudioError
from core.server.access import Principal
from core.spec.access import Role
from studio import late_results, roles
from studio.server.access import principal_of, split_refusal

if TYPE_CHECKING:
    from studio.components.field_errors import FieldErrors

logger = logging.getLogger(__name__)
GROUP_LIMIT = 8  # runs of one group at the same time
PAGE_LIMIT = 2000  # pages whose newest result of a group is remembered
TITLE = "That did not work"
UNEXPECTED = "Something went wrong inside the studio. Your files are safe. See the studio's log for details."


def user_message(error: BaseException) -> str:
    """What a user reads about an error: what happened and what to do, or no details if it was unexpected."""
    return f"{error.what} {error.fix}".strip() if isinstance(error, StudioError) else UNEXPECTED


def escape_markup(text: str) -> str:
    """Escapes a text for a toast, because Gradio renders toasts as HTML."""
    return html.escape(text)


@contextmanager
def _convert_errors(name: str) -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except StudioError as e:
        # The message may quote a file, so it is escaped here, once.
        raise gr.Error(escape_markup(user_message(e)), title=TITLE, print_exception=False) from e
    except Exception as e:
        logger.exception("The handler %s failed", name)
        raise gr.Error(UNEXPECTED, title=TITLE, print_exception=False) from e


def find_caller() -> Principal:
    """The principal whose event or server function runs now.

    Code that Gradio does not run, such as a test that calls a handler, is the owner's. Inside of Gradio, a
    call without a request that passed the guard may do nothing.
    """
    if LocalContext.blocks.get(None) is None:
        return Principal("owner", Role.OWNER)
    return principal_of(LocalContext.request.get(None))


def require_role(role: Role) -> None:
    """Refuses the caller of the running handler below a role.

    Raises:
        AccessError: the role of the caller is too low.
    """
    caller = find_caller()
    if caller.role < role:
        raise AccessError(*split_refusal(caller, role))


def handler(fn: Callable[..., Any], engine: Any) -> Callable[..., Any]:
    """Makes a Gradio handler of a plain one: binds its first argument, checks the role of the caller (see
    `studio.roles`), and turns errors into toasts.

    Args:
        fn: a function or generator function `(engine, *values)`.
        engine: the first argument of `fn`.

    Returns:
        a function `(*values)` with the rest of the signature of `fn`, which Gradio inspects.
    """
    role, is_silent = roles.find_role(fn), roles.is_silent(fn)
    if inspect.isgeneratorfunction(fn):

        @functools.wraps(fn)
        def call(*values: Any) -> Any:
            with _convert_errors(fn.__name__):
                if is_silent and find_caller().role < role:
                    yield gr.skip()
                    return
                require_role(role)
                yield from fn(engine, *values)
    else:

        @functools.wraps(fn)
        def call(*values: Any) -> Any:
            with _convert_errors(fn.__name__):
                caller = find_caller()
                if is_silent and caller.role < role:
                    return gr.skip()
                require_role(role)
                with act_for(Caller(caller.name, caller.role < Role.OWNER)):
                    return fn(engine, *values)

    signature = inspect.signature(fn)
    call.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    # Gradio reads the types at every call, which would evaluate their names again.
    with suppress(NameError):  # one that only a type checker knows
        call.__annotations__ = typing.get_type_hints(fn)
    return call


def server_function(fn: Callable[..., Any], engine: Any) -> Callable[[Any], dict[str, Any]]:
    """Makes a function that the page's JavaScript calls as `server.<name>(request)`.

    Args:
        fn: a function `(engine, request)`, where the request is a dict, and so is the response.
        engine: the first argument of `fn`.

    Returns:
        a function of the request alone; for an error its response is `{"error": message}`.
    """
    role = roles.find_role(fn)

    @functools.wraps(fn)
    def respond(request: Any = None) -> dict[str, Any]:
        try:
            require_role(role)
            caller = find_caller()
            with act_for(Caller(caller.name, caller.role < Role.OWNER)):
                response: dict[str, Any] = fn(engine, request if isinstance(request, dict) else {})
            return response
        except StudioError as e:
            return {"error": user_message(e)}
        except Exception:
            logger.exception("The server function %s failed", fn.__name__)
            return {"error": UNEXPECTED}

    parameter = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
    respond.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
    return respond


def bind(
    trigger: Callable[..., Any],
    engine: Any,
    fn: Callable[..., Any],
    inputs: Any = None,
    outputs: Any = None,
    errors: FieldErrors | None = None,
    refuse: Callable[..., Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Binds a handler to an event. It is private: not listed as an API endpoint and not callable as one.

    Args:
        errors: the form whose fields show the errors that they cause (`studio.components.field_errors`).
        refuse: makes the outputs after such an error from `(engine, *values)`; by default nothing changes.
    """
    kwargs.setdefault("show_progress", "hidden")
    kwargs.setdefault("show_progress_on", find_progress_bearer())
    call = handler(fn, engine)
    if errors is not None:
        targets = _list_components(outputs)
        call = _show_errors_at_fields(fn, engine, errors, targets, refuse)
        outputs = [*targets, errors.component]
    return trigger(call, inputs, outputs, api_visibility="private", **kwargs)


def bind_fill(
    trigger: Callable[..., Any],
    engine: Any,
    fn: Callable[..., Any],
    inputs: Any,
    outputs: Sequence[Any],
    fields: Iterable[Any] | None = None,
    keys: Sequence[Any] = (),
    **kwargs: Any,
) -> Any:
    """Binds a handler that fills fields: what the visitor has changed since it was called stays.

    See `studio.late_results`.

    Args:
        inputs, outputs: as for `EventGroup.add`.
        fields: the outputs that it fills; by default those that it also reads.
        keys: fields that its whole result is computed from.

    Returns:
        The event after which the fields are filled.
    """
    filled = late_results.list_fields(inputs, outputs) if fields is None else list(fields)
    carrier = late_results.Carrier(filled, keys)

    @functools.wraps(fn)
    def call(engine: Any, values: dict[Any, Any]) -> dict[Any, Any]:
        given = [{c: values[c] for c in inputs}] if isinstance(inputs, set) else [values[c] for c in inputs]
        updates = _by_component(fn(engine, *given), list(outputs))
        part, result = late_results.split(updates, values, filled, keys)
        if part["fill"]:
            result[carrier.component] = carrier.pack([part])
        return result or gr.skip()

    parameters = list(inspect.signature(fn).parameters.values())[:2]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    targets = [carrier.component, *(c for c in outputs if c not in filled or late_results.keeps_choices(c))]
    kwargs.setdefault("trigger_mode", "multiple")  # of two changes, each has its result
    event = bind(trigger, engine, call, {*inputs, *filled, *keys}, targets, **kwargs)
    return carrier.show(event.then)


def find_progress_bearer() -> Any:
    """The component that bears the state of hidden progress, one for all events.

    Gradio 6.31 updates that state at every event for each component that an event has ever had as an output,
    and looks for each from the root of the page: half of the time that this page takes to open.
    """
    root = Context.root_block
    return next((b for b in root.blocks.values() if isinstance(b, Component)), None) if root else None


def _list_components(outputs: Any) -> list[Any]:
    if outputs is None:
        return []
    return list(outputs) if isinstance(outputs, (list, tuple, set)) else [outputs]


def _show_errors_at_fields(
    fn: Callable[..., Any],
    engine: Any,
    errors: FieldErrors,
    targets: list[Any],
    refuse: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """The Gradio handler of `fn` for the outputs `[*targets, errors.component]`.

    An error that belongs to a field becomes a message there, and the other outputs are those of `refuse`.
    Every result of `fn` removes the messages.
    """

    def extend(result: Any) -> dict[Any, Any]:
        updates = _by_component(result, targets) if targets else {}
        return {**updates, errors.component: {}}

    def convert(error: StudioError, engine: Any, values: tuple[Any, ...]) -> dict[Any, Any]:
        messages = errors.messages(error)
        if messages is None:
            raise error
        updates = _by_component(refuse(engine, *values), targets) if refuse else {}
        return {**updates, errors.component: messages}

    if inspect.isgeneratorfunction(fn):

        @functools.wraps(fn)
        def show(engine: Any, *values: Any) -> Any:
            try:
                for result in fn(engine, *values):
                    yield extend(result)
            except StudioError as e:
                yield convert(e, engine, values)
    else:

        @functools.wraps(fn)
        def show(engine: Any, *values: Any) -> Any:
            try:
                return extend(fn(engine, *values))
            except StudioError as e:
                return convert(e, engine, values)

    return handler(show, engine)


def bind_sequential(
    trigger: Callable[..., Any],
    engine: Any,
    fn: Callable[..., Any],
    inputs: Any = None,
    outputs: Any = None,
    **kwargs: Any,
) -> Any:
    """Binds a handler to an event that has several handlers: it runs every time, one run after the other.

    Gradio's trigger mode "once" would drop a change that comes while the handler runs. Its "always_last",
    the default of `.change`, is for events with one handler: Gradio 6.31 fires the whole event again after
    a run, so two handlers that overlap would trigger each other for ever.
    """
    return bind(trigger, engine, fn, inputs, outputs, trigger_mode="multiple", concurrency_limit=1, **kwargs)


class EventGroup:
    """Handlers of many tabs that react to the same event, bound as one Gradio event.

    Whenever an event starts, yields or ends, Gradio's client (6.31) visits every component that any event
    has touched, which takes a tenth of a second per event on a small machine. A dozen lists that reload
    together are therefore one event, not a dozen.

    The groups of several pages run at the same time: one by one, they would wait for everything else that
    pages do when they open. Of two runs for one page, a result that is older than what it shows is dropped.
    """

    def __init__(self) -> None:
        # Each with its inputs, its outputs, those of them that are carried, and its keys.
        self._handlers: list[tuple[Callable[..., Any], Any, list[Any], list[Any], Sequence[Any]]] = []
        self._carrier: late_results.Carrier | None = None  # once it is bound
        self._after: list[tuple[Callable[..., Any] | str, Any, Any, str | None]] = []
        self._calls: list[Callable[..., Any]] = []  # the handlers as `handler` makes them, once it is bound
        self._tickets = itertools.count(1)  # of the runs, in the order of their beginning
        self._shown: OrderedDict[str, int] = OrderedDict()  # page -> ticket of its newest result
        self._lock = make_lock()

    def add(
        self,
        fn: Callable[..., Any],
        inputs: Any = None,
        outputs: Sequence[Any] = (),
        keys: Sequence[Any] = (),
    ) -> None:
        """Adds a handler. A field that it reads and fills stays where the visitor has changed it since.

        Args:
            fn: a plain handler.
            inputs: a list (`fn` gets values) or a set (`fn` gets one dict of them), as for Gradio's events.
            outputs: components; `fn` may also return a dict of components, with only those that change.
            keys: fields that its whole result is computed from (`studio.late_results`).
        """
        sources = inputs or []
        fields = late_results.list_fields(sources, outputs)
        self._handlers.append((fn, sources, list(outputs), fields, keys))

    def then(
        self, fn: Callable[..., Any] | str, inputs: Any = None, outputs: Any = None, queue: str | None = None
    ) -> None:
        """Adds a handler, or JavaScript source, that runs after those of `add` have updated the page.

        Sources run one after the other, each on what the one before has shown, and a handler after the
        sources that were added before it.

        Args:
            queue: the `concurrency_id` of events that run one by one with the handler.
        """
        self._after.append((fn, inputs, outputs, queue))

    def wire(self, trigger: Any, engine: Any) -> None:
        """Binds the group to an event, once every handler is added."""
        self._calls = [handler(fn, engine) for fn, *_ in self._handlers]
        inputs = {c for _, sources, *_ in self._handlers for c in sources}
        filled, every_key, shown_by_gradio = list[Any](), list[Any](), list[Any]()
        for _, _, targets, fields, keys in self._handlers:
            filled += fields
            every_key += keys
            shown_by_gradio += [c for c in targets if c not in fields or late_results.keeps_choices(c)]
        self._carrier = late_results.Carrier(filled, every_key)
        outputs = [*dict.fromkeys(shown_by_gradio), self._carrier.component]
        how: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": GROUP_LIMIT}
        event = bind(trigger, engine, self._run, inputs, outputs, **how)
        shown = self._carrier.show(event.then)
        for fn, sources, targets, queue in self._after:
            if isinstance(fn, str):
                shown = shown.then(None, sources, targets, js=fn, api_visibility="private")
            else:
                bind_sequential(shown.then, engine, fn, sources, targets, concurrency_id=queue)

    def _run(self, engine: Any, values: dict[Any, Any]) -> dict[Any, Any]:
        """Runs every handler. One that fails becomes a toast, and the outputs of the others still update."""
        ticket, updates, parts = next(self._tickets), dict[Any, Any](), list[dict[str, Any]]()
        calls = self._calls or [handler(fn, engine) for fn, *_ in self._handlers]
        for call, (_, sources, targets, fields, keys) in zip(calls, self._handlers, strict=True):
            if isinstance(sources, set):
                arguments: list[Any] = [{c: values[c] for c in sources}]
            else:
                arguments = [values[c] for c in sources]
            try:
                result = call(*arguments)
            except gr.Error as e:
                gr.Warning(e.message, title=e.title)
                continue
            result = _by_component(result, targets)
            if self._carrier is not None:
                part, result = late_results.split(result, values, fields, keys)
                parts += [part] if part["fill"] else []
            updates.update(result)
        if self._carrier is not None and parts:
            updates[self._carrier.component] = self._carrier.pack(parts)
        return updates if self._is_newest(ticket) else gr.skip()

    def _is_newest(self, ticket: int) -> bool:
        """Whether the page of the running event shows no result of a run that began after this one."""
        request = LocalContext.request.get(None)
        page = str(getattr(request, "session_hash", "") or "")
        if not page:
            return True
        with self._lock:
            is_newest = self._shown.get(page, 0) < ticket
            if is_newest:
                self._shown[page] = ticket
                self._shown.move_to_end(page)
            if len(self._shown) > PAGE_LIMIT:
                self._shown.popitem(last=False)
        return is_newest


def _by_component(result: Any, targets: list[Any]) -> dict[Any, Any]:
    """A handler's result as a dict of components; it may be one already, a tuple or a single value."""
    if isinstance(result, dict) and result and all(isinstance(k, gr.blocks.Block) for k in result):
        return result
    return dict(zip(targets, result if len(targets) > 1 else [result], strict=True))


def any_of(triggers: Iterable[Any]) -> Callable[..., Any]:
    """Several triggers as one, for `bind`."""
    return functools.partial(gr.on, list(triggers))


def refresh_after(event: Any) -> None:
    """Makes the page poll the studio's state as soon as an event is done, instead of at the next tick."""
    event.then(fn=None, js="() => window.studio.refresh()", api_visibility="private")
