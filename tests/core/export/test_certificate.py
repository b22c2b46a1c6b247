"""The certificate tells files that say the same from files that do not: weights, template, stop tokens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.export.certificate import (
    LIMITS,
    Comparison,
    Predictions,
    count_equal,
    judge,
    limit_difference,
    log_softmax,
)
from core.export.check_job import CheckRequest, check
from core.export.reference import Question, Reference, answer_questions, read_reference
from core.model.base import load_base
from core.model.resident import Resident
from core.spec.mix import Mix
from core.store.workspace import Workspace
from tests.core.merge.test_bake import add_random_adapter

QUESTIONS = [Question("Where is the red lamp?"), Question("Who keeps the key"), Question("The lamp is", True)]


class Listener:
    """A parent that only listens."""

    def report(self, progress: Any) -> None:
        assert 0 <= progress.done <= progress.total


@pytest.fixture(scope="module")
def studio(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory):
    """(resident base, adapter id, its folder)"""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    resident = Resident(load_base(str(tiny_base), "none", "cpu"), workspace)
    adapter = add_random_adapter(resident, "law", 4, 8, ("q_proj", "down_proj"), False)
    return resident, adapter, workspace.path("adapters", adapter)


def refer(studio: Any, folder: Path, mix: Mix | None = None) -> Reference:
    resident, adapter, _ = studio
    *progress, reference = answer_questions(resident, mix or Mix(weights={adapter: 1.0}), QUESTIONS, folder)
    assert sorted({p.done for p in progress}) == [0, 1, 2, 3]
    assert read_reference(folder) == reference
    return reference


def check_peft(base: Path, reference: Path, adapter: Path) -> Any:
    return check(
        CheckRequest("peft", str(base), str(reference), "exact", adapters={str(adapter): 1.0}), Listener()
    )


def test_the_adapter_itself_passes_in_plain_peft(studio, tiny_base, tmp_path):
    reference = refer(studio, tmp_path)
    assert [p.positions for p in reference.prompts] == [
        min(41, len(p.prompt) + len(p.answer)) for p in reference.prompts
    ]
    found = check_peft(tiny_base, tmp_path, studio[2])
    assert (found.status, found.reason) == ("passed", "")
    assert found.difference < 1e-4 and found.agreement == found.free_agreement == 1.0
    assert found.positions == sum(p.positions for p in reference.prompts) and found.prompts == 3
    assert found.kl < 1e-9 and found.runtime.startswith("peft ")
    assert found.studio_perplexity == pytest.approx(found.file_perplexity, rel=1e-5)
    assert found.same_stops and found.same_template


def test_another_weight_fails_with_the_number(studio, tiny_base, tmp_path):
    refer(studio, tmp_path, Mix(weights={studio[1]: 0.5}))
    found = check_peft(tiny_base, tmp_path, studio[2])
    assert found.status == "failed" and found.difference > 1e-2 and found.kl > 1e-6
    assert "A logit differs by" in found.reason


def test_another_template_and_other_stop_tokens_fail(studio, tiny_base, tmp_path):
    refer(studio, tmp_path)
    changed = tmp_path / "merged"
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    model.generation_config.eos_token_id = 7
    model.save_pretrained(changed)
    tokenizer.save_pretrained(changed)
    found = check(CheckRequest("transformers", str(changed), str(tmp_path), "f32"), Listener())
    assert found.status == "failed" and found.same_template is False and found.same_stops is False
    assert "The chat template is not the studio's." in found.reason
    assert "Other tokens end an answer than in the studio." in found.reason


def test_a_damaged_file_fails_in_a_sentence(studio, tiny_base, tmp_path):
    refer(studio, tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    found = check_peft(tiny_base, tmp_path, broken)
    assert found.status == "failed" and found.reason.startswith("The files cannot be loaded: ")


def test_too_little_memory_and_a_missing_runtime_are_not_checked(studio, tiny_base, tmp_path, monkeypatch):
    refer(studio, tmp_path)
    request = CheckRequest("transformers", str(tiny_base), str(tmp_path), "f32", model_bytes=1 << 60)
    found = check(request, Listener())
    assert found.status == "not checked" and "GB of memory" in found.reason
    monkeypatch.setattr("core.export.runtimes.is_installed", lambda package: False)
    found = check(CheckRequest("llama.cpp", "x.gguf", str(tmp_path), "f16"), Listener())
    assert found.status == "not checked" and "pip install xllamacpp" in found.reason


def test_prompts_that_do_not_fit_are_left_out(studio, tmp_path):
    resident, adapter, _ = studio
    long = [Question("lamp " * 5000), *QUESTIONS]
    *_, reference = answer_questions(resident, Mix(weights={adapter: 1.0}), long, tmp_path)
    assert [p.text for p in reference.prompts] == [q.text for q in QUESTIONS]


@pytest.mark.parametrize("seed", range(5))
def test_the_most_likely_tokens_alone_bound_the_divergence(seed):
    random = np.random.default_rng(seed)
    studio = random.normal(size=(7, 50)) * 3
    file = studio + random.normal(size=studio.shape) * 0.3
    order = np.argsort(-file, axis=-1)[:, :12]
    whole, top = Comparison(), Comparison()
    following = [int(row[0]) for row in order]
    whole.add(studio, Predictions(logits=file), following)
    logprobs = np.take_along_axis(log_softmax(file), order, -1)
    top.add(studio, Predictions(ids=order, logprobs=logprobs), following)
    assert 0 < top.kl <= whole.kl and top.kl > 0.3 * whole.kl and top.kl_is_bound
    assert top.agreeing == whole.agreeing
    assert top.nats_file == pytest.approx(whole.nats_file)
    assert top.known == whole.known == 7
    silent = Comparison()
    silent.add(studio, Predictions(ids=order, logprobs=np.full(order.shape, np.nan)), following)
    assert (silent.agreeing, silent.kl, silent.known) == (top.agreeing, 0.0, 0), "only which token is known"


def test_the_limits_of_each_precision_are_judged_by_themselves():
    sums = Comparison(positions=1000, agreeing=985, difference=2e-4)
    judged = {name: judge(sums, limits, True, True) for name, limits in LIMITS.items()}
    assert [name for name, reason in judged.items() if not reason] == [
        "q8_0", "q4_0", "q4_k_m", "quantized studio",
    ]  # fmt: skip
    assert judged["exact"].count(".") >= 3, "both reasons"
    assert "98.5%" in judged["f16"]
    assert judge(Comparison(), LIMITS["f32"], None, None) == "Nothing could be compared."


def test_the_limit_of_logits_grows_with_large_logits_only():
    exact = LIMITS["exact"]
    assert limit_difference(exact, 8.0) == exact
    assert limit_difference(exact, 40.0).difference == pytest.approx(4e-4)
    assert limit_difference(LIMITS["f16"], 40.0).difference is None


def test_answers_are_equal_up_to_the_first_difference():
    assert [count_equal([1, 2, 3], other) for other in ([1, 2, 3], [1, 2], [1, 9, 3], [])] == [3, 2, 1, 0]


def test_a_certificate_is_json(studio, tiny_base, tmp_path):
    refer(studio, tmp_path)
    found = check_peft(tiny_base, tmp_path, studio[2])
    assert json.loads(json.dumps(dataclasses.asdict(found)))["agreement"] == 1.0
    assert torch.isfinite(torch.tensor(found.kl))
