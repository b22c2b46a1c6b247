"""Lists and objects that a CSV holds as text are read without running anything; unclear ones are not read."""

import pytest

from core.data.roles.literals import LENGTH_LIMIT, parse_literal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', \"it's\"]", ["a", "it's"]),
        ("['a' 'b'\n 'c']", ["a", "b", "c"]),
        ("{'text': array(['x y'], dtype=object), 'at': array([5])}", {"text": ["x y"], "at": [5]}),
        ("('a', 1)", ("a", 1)),
        ("['a' 'b, c']", None),
        ("[open('x')]", None),
        ("plain", None),
        ("[1, 2", None),
        ("[" * 40 + "]" * 40, None),
        ("['" + "x" * LENGTH_LIMIT + "']", None),
    ],
    ids=lambda v: str(v)[:30],
)  # fmt: skip
def test_a_literal_is_read_or_not_but_never_run(text, value):
    assert parse_literal(text) == value
