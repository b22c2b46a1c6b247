"""Every handler and server function of the page as each role (T23), from the tables of `studio.roles`."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.context import LocalContext

from core.engine import Engine
from core.errors import AccessError
from core.server.access import Principal
from core.spec.access import Role
from studio import actions, events, roles
from studio.app import build
from studio.server.access import SCOPE_KEY
from studio.tabs import data, library, runs

OLD = Path(__file__).resolve().parents[1] / "data" / "old_workspace"


class Reached(Exception):
    """A handler has used the engine."""


class GuardedEngine:
    """The engine while the page is built; afterwards every use of it raises."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.is_armed = engine, False

    def __getattr__(self, name: str) -> Any:
        if self.is_armed:
            raise Reached(name)
        return getattr(self.engine, name)


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Name of a handler or server function -> (the function that Gradio calls, number of its inputs)."""
    with Engine(tmp_path_factory.mktemp("w"), load=False) as engine:
        guard: Any = GuardedEngine(engine)
        page = build(guard)
        guard.is_armed = True
        found = {}
        for block_fn in page.fns.values():
            if block_fn.fn is not None:
                found[roles.name_of(block_fn.fn)] = block_fn.fn
        for block in page.blocks.values():
            for fn in vars(block).values():
                if getattr(fn, "_is_server_fn", False):
                    found[roles.name_of(fn)] = fn
        yield found


@contextmanager
def call_as(role: Role) -> Iterator[None]:
    """As Gradio runs a handler for a request that has passed the guard."""
    request = SimpleNamespace(scope={SCOPE_KEY: Principal("caller", role)})
    tokens = LocalContext.blocks.set(object()), LocalContext.request.set(request)  # type: ignore[arg-type]
    try:
        yield
    finally:
        LocalContext.blocks.reset(tokens[0])
        LocalContext.request.reset(tokens[1])


def outcome(fn: Any) -> str:
    """What happens to a call: "refused", "silent" or "allowed"."""
    values = [None for p in inspect.signature(fn).parameters.values() if p.default is p.empty]
    try:
        result = fn(*values)
        if inspect.isgenerator(result):
            result = next(result, None)
    except gr.Error as e:
        return "refused" if "This needs the role" in str(e) or "not signed in" in str(e) else "allowed"
    if isinstance(result, dict) and (
        "needs the role" in str(result.get("error")) or "signed in" in str(result)
    ):
        return "refused"
    return "silent" if result == gr.skip() else "allowed"


def test_t23_every_handler_answers_each_role_as_the_tables_say(handlers: dict[str, Any]) -> None:
    assert len(handlers) > 110
    wrong = []
    for name, fn in handlers.items():
        needed = roles.ROLES.get(name, Role.OWNER)
        for role in Role:
            with call_as(role):
                got = outcome(fn)
            refusals = ("silent",) if name in roles.SILENT else ("refused",)
            expected = ("allowed", "silent") if role >= needed else refusals
            if got not in expected:
                wrong.append((name, role.label, got))
    assert not wrong


def test_lists_that_reload_together_ask_for_no_role_that_a_viewer_lacks(tmp_path: Path) -> None:
    with Engine(tmp_path, load=False) as engine:
        page = build(engine)
    owners = [getattr(inspect.unwrap(f.fn), "__self__", None) for f in page.fns.values() if f.fn]
    groups = [owner for owner in owners if isinstance(owner, events.EventGroup)]
    reloaded = [fn for group in groups for fn, *_ in group._handlers]
    assert len(groups) == 2 and len(reloaded) > 20
    assert [roles.name_of(fn) for fn in reloaded if roles.find_role(fn) > Role.VIEWER] == []


def test_the_tables_name_existing_handlers_only(handlers: dict[str, Any]) -> None:
    import importlib

    for name in {*roles.ROLES, *roles.SILENT} - set(handlers):
        module, _, function = name.rpartition(".")
        source = inspect.getsource(importlib.import_module(module))
        assert f"def {function}(" in source, f"{name} is in a table and nowhere else"
    assert set(roles.ROLES) >= roles.SILENT
    both = roles._list_names(roles.VIEWER) & roles._list_names(roles.TRAINER)
    assert not both


def test_deleting_exporting_and_the_base_are_the_owner_s(handlers: dict[str, Any]) -> None:
    names = {n.removeprefix("studio.") for n in handlers if roles.ROLES.get(n, Role.OWNER) is Role.OWNER}
    assert names >= {
        "components.exports.act_on_export", "tabs.exports.start", "tabs.base.change_base",
        "tabs.base.use_base", "tabs.library.delete_item", "tabs.mix.delete_mix", "tabs.compare.delete_votes",
        "components.damaged.act_on_damaged", "tabs.adapter_import.add_adapter", "tabs.keys.create",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("act", "needed"),
    [({"do": name}, role) for name, role in actions.ROLES.items()],
)
def test_t23_actions_of_buttons_check_the_role(act: dict[str, str], needed: Role) -> None:
    assert needed in (Role.TRAINER, Role.OWNER)
    event = SimpleNamespace(_data=act)
    with call_as(Role(needed - 1)), pytest.raises(AccessError, match=f"the role {needed.label}"):
        actions.run_action(GuardedEngine.__new__(GuardedEngine), event)  # type: ignore[arg-type]


def test_t23_buttons_of_lists_check_the_role_of_what_they_do() -> None:
    def press(**data: str) -> Any:
        return SimpleNamespace(_data=data)

    with call_as(Role.TRAINER), pytest.raises(AccessError, match="role owner, and you are trainer"):
        library.pick_item(None, "trash", "", press(do="empty"))  # type: ignore[arg-type]
    with call_as(Role.TRAINER), pytest.raises(AccessError):
        library.act_on_item(None, "trash", "", press(do="restore"))  # type: ignore[arg-type]
    for do in ("move", "cancel", "requeue"):
        with call_as(Role.VIEWER), pytest.raises(AccessError, match="role trainer"):
            runs.change_queue(None, press(do=do))  # type: ignore[arg-type]


def test_inside_of_gradio_a_call_without_a_request_may_do_nothing() -> None:
    assert events.find_caller().role is Role.OWNER, "a test, or the studio itself"
    token = LocalContext.blocks.set(object())  # type: ignore[arg-type]
    try:
        assert events.find_caller().role is Role.NONE
        with pytest.raises(AccessError, match="not signed in"):
            events.require_role(Role.VIEWER)
    finally:
        LocalContext.blocks.reset(token)


def test_a_handler_without_an_entry_needs_an_owner(tmp_path: Path) -> None:
    def erase(engine: Any) -> str:
        return "erased"

    call = events.handler(erase, None)
    with call_as(Role.TRAINER), pytest.raises(gr.Error, match="This needs the role owner"):
        call()
    with call_as(Role.OWNER):
        assert call() == "erased"


def test_t23_a_viewer_sees_what_a_dataset_is_and_none_of_its_rows(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "w")
    with Engine(tmp_path / "w", load=False) as engine:
        picked = engine.datasets.list()[0]
        row = str(next(iter(engine.datasets.rows(picked.id, "train", limit=1)[0].values())))[:30]
        with call_as(Role.VIEWER):
            seen = data.show_dataset(engine, picked.id)
        with call_as(Role.TRAINER):
            all_ = data.show_dataset(engine, picked.id)
    assert str(seen[0]) == str(all_[0]) and picked.name in str(seen[0]) and data.FOR_TRAINERS in str(seen[3])
    assert row in str(all_) and row not in str(seen) and seen[1] is None
