"""A workspace with two adapters of the embedded base, one trained on top of the other, and a mix of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from core.export.base_layout import describe_layout
from core.store import mixes
from core.store.workspace import Workspace
from tests.core.export.makers import add_adapter


@dataclass(frozen=True)
class Library:
    """A workspace, and the ids of its items."""

    workspace: Workspace
    notes: str
    answers: str
    mix: str


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    workspace, layout = Workspace(tmp_path_factory.mktemp("library")), describe_layout("embedded")
    notes = add_adapter(workspace, layout, "notes", kind="domain")
    answers = add_adapter(workspace, layout, "answers", stacked_on={"id": notes, "name": "notes"})
    mix = mixes.save(workspace, "Both at half", {notes: 0.5, answers: 0.5})
    return Library(workspace, notes, answers, mix.id)


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "empty")
