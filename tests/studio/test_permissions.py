"""The controls that a visitor may use: the table of the page, and what the page is told (T23)."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from core.engine import Engine
from core.errors import AccessError
from core.server.access import Principal
from core.spec.access import Role
from studio import permissions, roles
from studio.app import build
from studio.server.access import SCOPE_KEY, Visit
from tests.studio.test_roles import call_as


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gr.Blocks]:
    with Engine(tmp_path_factory.mktemp("w"), load=False) as engine:
        yield build(engine)


def find_button(page: gr.Blocks, text: str) -> str:
    (found,) = (b for b in page.blocks.values() if isinstance(b, gr.Button) and b.value == text)
    return str(found.elem_id)


def test_every_button_needs_the_role_of_its_handler(page: gr.Blocks) -> None:
    needs = permissions.list_needs(page)
    wrong = []
    for event in page.fns.values():
        for block_id, name in event.targets if event.fn is not None else []:
            block = page.blocks.get(block_id) if block_id is not None else None
            if isinstance(block, gr.Button) and name == "click":
                role = roles.find_role(event.fn)
                if role > Role.VIEWER and needs["blocks"].get(block.elem_id, 0) < role:
                    wrong.append((block.value, role))
    assert not wrong and len(needs["blocks"]) > 40
    texts = {"Import the files": 2, "Bake this mix": 2, "Use this base": 3, "Create a key": 3, "Import": 3}
    for text, role in texts.items():
        assert needs["blocks"][find_button(page, text)] == role, text
    for text in ("Save mix", "Load", "Answer", "Measure", "Run the suite"):
        if [b for b in page.blocks.values() if isinstance(b, gr.Button) and b.value == text]:
            assert find_button(page, text) not in needs["blocks"], text


def test_lists_with_buttons_of_many_kinds_need_a_role_for_each(page: gr.Blocks) -> None:
    needs = permissions.list_needs(page)
    assert (
        needs["acts"]["queue"] | {"move": 2, "cancel": 2, "requeue": 2, "stop": 2} == needs["acts"]["queue"]
    )
    assert needs["acts"]["shelf"]["empty"] == 3 and needs["acts"]["details"] == {"restore": 3}
    assert needs["acts"]["guide"]["train"] == 2 and "tab" not in needs["acts"]["guide"]
    assert needs["blocks"]["exports"] == 3 and needs["blocks"]["files"] == needs["blocks"]["imports"] == 2
    download = "gradio_api/studio/download"
    assert needs["links"] == {download: 3, f"{download}/report": 1, f"{download}/grid": 1}


def test_every_element_can_be_found_by_its_id(page: gr.Blocks) -> None:
    ids = [b.elem_id for b in page.blocks.values() if isinstance(b, gr.components.Component)]
    assert all(ids) and len(set(ids)) == len(ids)


def test_the_script_holds_the_table(page: gr.Blocks) -> None:
    script = permissions.script(page)
    table = script.partition("const needs = ")[2].partition(";\n")[0]
    assert json.loads(table) == permissions.list_needs(page) and "NEEDS" not in script


@pytest.mark.parametrize(
    ("handler", "act", "needed"),
    [(name, do, role) for name, acts in roles.ACTS.items() for do, role in acts.items() if do != "ask_empty"],
)
def test_t23_the_handler_of_a_list_asks_for_the_role_of_the_table(
    handler: str, act: str, needed: Role
) -> None:
    module, _, name = handler.rpartition(".")
    press = getattr(importlib.import_module(f"studio.{module}"), name)
    # The library's tabs begin with the kind of list; what else a handler is given does not matter here.
    values = ["trash"] * (len(inspect.signature(press).parameters) - 2)
    with call_as(Role(needed - 1)), pytest.raises(AccessError, match=f"the role {needed.label}"):
        done = press(None, *values, SimpleNamespace(_data={"do": act}))
        next(done)  # a generator asks at its first step


@pytest.mark.parametrize("role", list(Role))
def test_the_page_says_what_a_role_may_do(role: Role) -> None:
    shown = json.dumps(permissions.render_role(Visit(role)))
    assert (f"You are a {role.label}: " in shown) == (role in (Role.VIEWER, Role.TRAINER))
    told = permissions.describe(Visit(role, can_sign_in=True))
    assert told["role"] == role and set(told["reasons"]) == {
        str(int(r)) for r in Role if r > max(role, Role.VIEWER)
    }
    if role is Role.VIEWER:
        assert told["reasons"]["3"] == "This needs the role owner, and you are viewer. Sign in for more."
        assert "Ask the owner" in permissions.describe(Visit(role))["reasons"]["2"]


def test_signing_in_and_out_have_a_button_where_they_are_possible() -> None:
    def text(**more: Any) -> str:
        return json.dumps(permissions.render_session(Visit(Role.VIEWER, **more)))

    assert text() == "null" and "sign_in" in text(can_sign_in=True)
    out = text(can_sign_out=True, name="ann")
    assert "sign_out" in out and "You are signed in as ann." in out


def test_a_visit_is_read_from_the_request_that_is_handled() -> None:
    assert permissions.find_visit() == Visit(Role.OWNER), "code that Gradio does not run"
    with call_as(Role.TRAINER):
        assert permissions.find_visit() == Visit(Role.TRAINER)
    request = SimpleNamespace(scope={SCOPE_KEY: Principal("x", Role.VIEWER)})
    assert permissions.describe_visit(request) == Visit(Role.VIEWER)
