"""A trained engine for the tests of the Mix tab, and helpers that read trees of nodes."""

from __future__ import annotations

import dataclasses
import threading

import gradio as gr
import pytest

from core.engine import Engine
from core.engine.analysis import WeightAxis
from core.spec.mix import Mix, Sampling
from core.store.weight_maps import WeightMap
from studio import fields, samples
from studio.components import mixer
from studio.session import SAMPLING
from studio.tabs import suggestions, weight_map
from tests.browser.conftest import small_samples

EVIL = 'Do<b>main & %{x} <img src=x onerror="alert(1)"> &lt;'


@pytest.fixture(scope="package")
def engine(tiny_base, tmp_path_factory):
    """An engine with the sample data and two adapters that were trained for a few steps."""
    with Engine(
        tmp_path_factory.mktemp("analysis"), base=str(tiny_base), quantization="none", device="cpu"
    ) as made:
        made.samples = small_samples(tmp_path_factory.mktemp("samples"))
        samples.import_samples(made)
        for kind in ("domain", "task"):
            spec = suggestions.suggest_run(made, kind)
            spec = dataclasses.replace(
                spec,
                max_steps=6,
                batch_size=2,
                accumulation=1,
                max_length=64,
                rank=4,
                learning_rate=5e-3,
                stack_on="",
            )
            made.runs.wait(made.runs.start(spec), 600)
        yield made


@pytest.fixture
def small_maps(monkeypatch):
    """Nine points where the page has eighty-one."""
    monkeypatch.setattr("core.engine.analysis.WeightAxis", lambda: WeightAxis(0.0, 1.0, 3))


@pytest.fixture
def empty(tiny_base, tmp_path):
    with Engine(tmp_path, base=str(tiny_base), quantization="none", device="cpu") as made:
        yield made


@pytest.fixture
def gate(engine, monkeypatch):
    """Until this is set, every stream waits after what it says where `until` is true."""
    go, real = threading.Event(), engine.worker.stream
    go.until = lambda part: True

    def stream(start):
        def steps():
            for part in start():
                yield part
                if go.until(part):
                    assert go.wait(60)

        return real(steps)

    monkeypatch.setattr(engine.worker, "stream", stream)
    return go


def pressed(**said):
    return gr.EventData(None, said)


def nodes(tree):
    """Every node of a tree, itself first."""
    yield tree
    for kid in tree["kids"]:
        assert isinstance(kid, str) or set(kid) <= {"tag", "kids", "cls", "act", "vars", "attrs"}
        if isinstance(kid, dict):
            yield from nodes(kid)


def texts(tree):
    return tree if isinstance(tree, str) else "".join(texts(k) for k in tree["kids"])


def acts(tree):
    return [n["act"] for n in nodes(tree) if "act" in n]


def cells(tree, which=0):
    """The rows of a table in a tree, as texts."""
    found = [n for n in nodes(tree) if n["tag"] == "table"][which]
    return [[texts(c) for c in n["kids"]] for n in nodes(found) if n["tag"] == "tr"]


def ids(engine):
    return (next(a.id for a in engine.library.adapters() if a.kind == kind) for kind in ("domain", "task"))


def rows_of(engine, weights, tilt=None):
    return mixer.apply_mix(None, mixer.adapter_rows(engine), Mix(weights=weights, tilt=tilt or {}))


def sampling(**changes):
    return [fields.to_component(getattr(Sampling(**changes), n)) for n in SAMPLING]


def marks(figure):
    return {t["name"]: (t["x"][0], t["y"][0]) for t in figure["traces"][1:]}


def toy_map(metric="perplexity", holes=0, kind="task", values=None):
    """A map that was drawn elsewhere."""
    given = values or ((8.0, 4.0, 2.0), (9.0, 1.5, 90.0), (7.0, 6.0, 5.0))
    if metric == "exact_match":
        given = values or ((0.0, 0.25, 0.5), (0.1, 1.0, 0.2), (0.0, 0.0, 0.3))
    shown = tuple(tuple(None if j >= 3 - holes else v for v in row) for j, row in enumerate(given))
    return WeightMap(
        "k",
        ("d", "t"),
        {"f": 0.5},
        (0.0, 0.5, 1.0),
        (-1.0, 0.0, 1.0),
        metric,
        shown,
        {},
        "base",
        "fp",
        "none",
        "data",
        "Data",
        "sha",
        "val",
        kind,
        "sample",
        4,
        0.0,
    )


def draw(engine, session, metric="perplexity", rows=None, limit=4):
    domain, task = ids(engine)
    data = samples.list_held_out(engine)[0]
    *_, last = weight_map.draw_map(
        engine,
        domain,
        task,
        data,
        limit,
        rows if rows is not None else rows_of(engine, {domain: 1.0, task: 1.0}),
        session,
        metric,
    )
    return last
