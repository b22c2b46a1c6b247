"""The facade: documents become an adapter that answers, on the embedded base; errors say what to do."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest

from core.engine import Engine
from core.engine.fine_tuning import read_document
from core.errors import BaseModelError, DataError, NotFound, SpecError
from core.facade import FineTuningConfig, PEFTAdapterManager
from core.spec.training import TrainSpec

from ..conftest import SENTENCES

TINY = FineTuningConfig(
    model_name="embedded", num_epochs=1, max_length=64, batch_size=8, gradient_accumulation_steps=1
)


def test_the_defaults_are_those_of_peft_scripts():
    assert dataclasses.asdict(FineTuningConfig()) == {
        "model_name": "microsoft/DialoGPT-medium",
        "max_length": 512,
        "learning_rate": 2e-4,
        "num_epochs": 3,
        "batch_size": 4,
        "gradient_accumulation_steps": 4,
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "target_modules": None,
    }


def test_a_config_becomes_the_settings_of_a_run():
    config = FineTuningConfig(
        max_length=300, num_epochs=2, lora_rank=8, lora_alpha=4, lora_dropout=0.3, target_modules=("q", "v")
    )
    assert config.to_spec("task", "A", "d") == TrainSpec(
        kind="task", name="A", dataset="d", max_length=300, epochs=2.0, learning_rate=2e-4, batch_size=4,
        accumulation=4, rank=8, alpha=4, dropout=0.3, target_modules=("q", "v"),
    )  # fmt: skip
    assert config.to_spec("task", "A", "d", context=256).max_length == 256
    assert FineTuningConfig().to_spec("domain", "A", "d").target_modules == ()


@pytest.mark.parametrize(
    "field, value", [("lora_rank", 0), ("learning_rate", math.nan), ("max_length", "512"), ("num_epochs", 0)]
)
def test_a_setting_outside_its_limits_is_refused_by_name(field, value):
    with pytest.raises(SpecError) as error:
        FineTuningConfig(**{field: value})
    assert error.value.field == field


@pytest.mark.parametrize(
    "document",
    ["A lamp.", {"text": "A lamp."}, {"content": "A lamp."}, SimpleNamespace(page_content="A lamp.")],
)
def test_texts_mappings_and_objects_are_documents(document):
    assert read_document(document, 1) == "A lamp."


@pytest.mark.parametrize("document", ["", "  \n", {"title": "x"}, {"text": 3}, 7, None])
def test_a_document_without_text_is_named(document):
    with pytest.raises(DataError, match="Document 4 must be a text"):
        read_document(document, 4)


def test_a_model_that_cannot_be_loaded_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with PEFTAdapterManager(FineTuningConfig(model_name=str(tmp_path / "gone")), tmp_path / "ws") as manager:
        with pytest.raises(BaseModelError, match="gone") as error:
            manager.setup_model()
    assert "Give another model_name" in error.value.fix
    with pytest.raises(NotFound, match="No model is set up"):
        manager.status()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with Engine(tmp_path_factory.mktemp("ws"), "embedded") as made:
        made.bases.current(wait=True)
        yield made


@pytest.mark.slow
def test_documents_become_an_adapter_that_answers(engine):
    manager = PEFTAdapterManager(TINY, engine=engine)
    manager.setup_model()
    assert (manager.status().trained, manager.status().state) == (False, "not set up")
    base_answer = manager.generate_response("Where is the red lamp?", 12)
    assert base_answer
    documents = [*SENTENCES[:20], *({"content": s} for s in SENTENCES[20:30])]
    documents += [SimpleNamespace(page_content=s, metadata={}) for s in SENTENCES[30:]]
    assert manager.setup_fine_tuning_pipeline(documents) is True
    assert manager.problem == ""
    status = manager.status()
    assert (status.trained, status.state, status.version, status.progress) == (True, "finished", 1, 1.0)
    assert status.step == status.total_steps >= 1 and status.loss > 0
    assert engine.datasets.list()[0].rows == len(SENTENCES)
    assert engine.library.adapter(status.adapter).rank == 16
    assert isinstance(manager.generate_response("Where is the red lamp?", 12), str)
    assert manager.train_model() is True
    assert manager.status().version == 2


@pytest.mark.slow
def test_a_given_engine_keeps_its_base(engine):
    manager = PEFTAdapterManager(engine=engine)
    with pytest.raises(BaseModelError, match="The engine has the base 'embedded', got the model_name 'micro"):
        manager.setup_model()
    manager.close()
    assert engine.bases.current().name == "embedded"
