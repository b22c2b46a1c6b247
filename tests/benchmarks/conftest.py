"""Benchmarks silence the log of their process; the tests after them need it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def hear_the_log_again() -> Iterator[None]:
    yield
    logging.disable(logging.NOTSET)
