"""Roles of columns after one change by the user."""

import itertools
import random

from core.data.roles.columns import ROLE_SETS, ROLES
from studio.reading_choices import assign_role, find_role, kind_of, list_roles, swap_roles


def test_a_role_that_another_column_has_is_exchanged():
    roles = {"question": "a", "answer": "b"}
    assert assign_role("task", roles, "a", "answer") == {"answer": "a", "question": "b"}
    assert swap_roles(roles) == {"question": "b", "answer": "a"}
    assert swap_roles({"instruction": "a", "output": "b", "system": "c"}) == {
        "instruction": "b",
        "output": "a",
        "system": "c",
    }


def test_a_column_that_is_not_used_loses_its_role():
    assert assign_role("task", {"question": "a", "answer": "b"}, "b", "") == {"question": "a"}


def test_roles_of_another_set_are_replaced_by_those_that_say_the_same():
    roles = {"instruction": "a", "output": "b", "type": "t"}
    assert assign_role("task", roles, "c", "question") == {"question": "c", "answer": "b", "type": "t"}
    assert assign_role("task", {"question": "a", "answer": "b"}, "c", "completion") == {
        "prompt": "a",
        "completion": "c",
    }


def test_the_first_role_of_the_other_kind_changes_the_kind():
    assert kind_of("question", "domain") == "task" and kind_of("text", "task") == "domain"
    assert kind_of("type", "task") == "task"
    assert assign_role("task", {"text": "a"}, "b", "question") == {"question": "b"}
    assert set(list_roles("domain", {})) == {r for k in ROLES for r in ROLES[k]}


def test_after_any_changes_every_column_has_one_role_of_one_set():
    rng = random.Random(7)
    columns = ["a", "b", "c", "d"]
    for _ in range(300):
        roles: dict[str, str] = {}
        for _ in range(6):
            column, role = rng.choice(columns), rng.choice(["", *ROLES["task"]])
            roles = assign_role("task", roles, column, role)
            assert find_role(roles, column) == role, "the last change counts"
            assert len(set(roles.values())) == len(roles), "a column has one role"
            assert any(set(roles) <= set(s.required + s.optional) for s in ROLE_SETS if s.kind == "task")


def test_two_exchanges_give_the_roles_of_before():
    for first, second in itertools.permutations(["a", "b", "c"], 2):
        roles = {"question": first, "answer": second}
        assert swap_roles(swap_roles(roles)) == roles
