"""A trained engine for the tests of the Compare tab, and helpers."""

from __future__ import annotations

import dataclasses

import gradio as gr
import pytest

from core.engine import Engine
from core.spec.mix import Sampling
from studio import fields, mix_choices, samples
from studio.session import SAMPLING
from studio.tabs import suggestions
from tests.browser.conftest import small_samples


@pytest.fixture(scope="package")
def trained(tiny_base, tmp_path_factory):
    with Engine(
        tmp_path_factory.mktemp("studio"), base=str(tiny_base), quantization="none", device="cpu"
    ) as made:
        made.samples = small_samples(tmp_path_factory.mktemp("samples"))
        samples.import_samples(made)
        for kind in ("domain", "task"):
            spec = dataclasses.replace(
                suggestions.suggest_run(made, kind),
                max_steps=2,
                batch_size=2,
                accumulation=1,
                max_length=64,
                rank=4,
            )
            made.runs.wait(made.runs.start(spec), 600)
        yield made


@pytest.fixture
def engine(trained):
    trained.votes.reset()
    return trained


def pressed(**said):
    return gr.EventData(None, said)


def texts(node) -> str:
    return node if isinstance(node, str) else "".join(texts(k) for k in (node or {}).get("kids", []))


def sampling(**changes):
    return [fields.to_component(getattr(Sampling(**changes), n)) for n in SAMPLING]


def picks(engine):
    return [c["id"] for c in mix_choices.list_choices(engine)][:4]
