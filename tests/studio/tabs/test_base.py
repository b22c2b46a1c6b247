"""The Base tab: what it offers beside the bases on this machine, and how preparations are shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.engine import Engine
from core.store.hub import Download
from core.store.known_bases import SMOLLM2
from studio import actions, advice
from studio.formatting import format_base
from studio.tabs import base


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path, load=False) as made:
        yield made


def pressed(**action: Any) -> Any:
    return SimpleNamespace(_data=action)


def texts(tree: Any) -> str:
    return tree if isinstance(tree, str) else " ".join(texts(k) for k in tree.get("kids", []))


def buttons(tree: Any) -> list[Any]:
    if isinstance(tree, str):
        return []
    own = [tree["act"]] if tree.get("act") else []
    return own + [act for kid in tree.get("kids", []) for act in buttons(kid)]


def test_the_small_base_is_offered_once_with_what_it_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, bool]] = []
    monkeypatch.setattr(engine.bases, "download", lambda name, use: begun.append((name, use)))
    offer = base.render_offers(engine)
    assert SMOLLM2.about in texts(offer) and buttons(offer) == [{"get": "smollm2-135m"}]
    base.get_offer(engine, pressed(get="smollm2-135m"))
    base.get_offer(engine, pressed(get="../other"))
    actions.run_action(engine, pressed(do="get_base", base="smollm2-135m"))
    actions.run_action(engine, pressed(do="get_base", base="Qwen/other"))
    assert begun == [("smollm2-135m", True)] * 2
    monkeypatch.setattr(engine.bases, "needs_preparation", lambda name: False)
    assert buttons(base.render_offers(engine)) == []


def test_the_first_page_offers_it_beside_the_sample_data(engine: Engine) -> None:
    step = advice.next_step(engine.bases.current(), [], [], [])
    assert [b["act"]["do"] for b in step.buttons] == ["sample", "get_base"]
    assert "real English (92.9 MB)" in texts(step.buttons[1]) or "93 MB" in texts(step.buttons[1])
    other = SimpleNamespace(name="/models/other", loading=False, error="")
    assert [b["act"]["do"] for b in advice.next_step(other, [], [], []).buttons] == ["sample"]


def test_a_preparation_shows_what_is_done_and_how_it_ended() -> None:
    running = base.render_progress(Download("x.gguf", 30, 120, text="Converting x"))
    assert "Converting x (25%)" in texts(running) and buttons(running) == [{"stop": True}]
    waiting = Download("/a/x.gguf", 10, 10, over=True, text="waiting", base="/ws/bases/x-0123456789ab")
    assert "x.gguf is ready" in texts(base.render_progress(waiting)) and "Use this base" in texts(
        base.render_progress(waiting)
    )
    used = Download("tiny:1b", 10, 10, over=True, text="used", base="/ws/bases/x-0123456789ab")
    assert "tiny:1b is ready and is being loaded." in texts(base.render_progress(used))


def test_a_converted_base_is_named_without_its_digest() -> None:
    assert format_base("/ws/bases/qwen2-5-0-5b-0123456789ab") == "qwen2-5-0-5b"
    assert format_base("/models/x-0123456789ab") == "x-0123456789ab"
