"""The settings files of a merged model mean the same to older and newer runtimes, and name no code."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from core.export.base_layout import describe_layout
from core.export.merged_folder import write_settings
from core.export.model_settings import complete_config
from core.gguf.model_tensors import FolderTensors
from core.model.base import load_base
from tests.core.export.makers import SHAPE, build_base

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 2e4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("family", "rotary", "old"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
        ("llama", LLAMA3, {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "type": "llama3"}}),
        (
            "qwen3",
            {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32},
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "type": "yarn", "factor": 4.0}},
        ),
        ("phi3", LONG, {"rope_theta": 2e4, "rope_scaling": {"type": "longrope"}}),
        (
            "gemma3_text",
            {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear"}},
        ),
    ],
    ids=["plain", "llama3", "yarn", "longrope", "gemma3"],
)
def test_rotary_settings_are_spelled_in_both_ways(family, rotary, old) -> None:
    extra = {"original_max_position_embeddings": 32} if family == "phi3" else {}
    config = hf.AutoConfig.for_model(family, **{**SHAPE, **extra}, rope_parameters=rotary)
    written = complete_config(config.to_dict(), config, "float32")
    assert written["dtype"] == written["torch_dtype"] == "float32"
    again = type(config).from_dict(json.loads(json.dumps(written))).rope_parameters
    assert strip(again) == strip(config.rope_parameters)
    for key, value in old.items():
        if isinstance(value, dict):
            expected = {k: v for k, v in value.items() if k != "rope_theta"}
            assert {k: written[key].get(k) for k in expected} == expected
        else:
            assert written[key] == value


def strip(rotary: Any) -> Any:
    if not isinstance(rotary, dict):
        return rotary
    return {k: strip(v) for k, v in rotary.items() if k != "type" and v is not None}


def test_old_spelling_of_a_base_stays() -> None:
    raw = {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    written = complete_config(raw, hf.LlamaConfig.from_dict(copy.deepcopy(raw)), "bfloat16")
    assert written["rope_scaling"] == {"type": "linear", "factor": 2.0} and written["rope_theta"] == 5e5
    assert written["rope_parameters"]["rope_theta"] == 5e5 and written["rope_parameters"]["factor"] == 2.0


def test_code_and_paths_of_a_base_stay_behind(tmp_path) -> None:
    base = build_base(tmp_path / "base", "llama")
    for name in ("modeling_evil.py", "pytorch_model.bin", "training_args.bin", "tokenizer.pkl", "notes.txt"):
        (base / name).write_text("x")
    for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md"):
        (base / name).write_text(name)
    (base / "LICENSE.py").write_text("x")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        value = json.loads((base / name).read_text())
        value |= {"auto_map": {"AutoModel": "modeling_evil.M"}, "_name_or_path": "/home/me/secret"}
        (base / name).write_text(json.dumps(value))
    layout = describe_layout(str(base))
    out = tmp_path / "out"
    out.mkdir()
    names = write_settings(out, FolderTensors(base), layout)
    assert sorted(names) == sorted(p.name for p in out.iterdir())
    assert {"LICENSE", "NOTICE.txt", "USE_POLICY.md", "tokenizer.json", "config.json"} <= set(names)
    assert not {"modeling_evil.py", "pytorch_model.bin", "tokenizer.pkl", "LICENSE.py", "notes.txt"} & {
        *names
    }
    text = "".join(p.read_text() for p in out.iterdir())
    assert "auto_map" not in text and "secret" not in text


def test_tokens_that_end_an_answer_in_the_studio_end_it_elsewhere(tmp_path) -> None:
    base = build_base(tmp_path / "base", "llama")
    generation = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": [4, 7]}))
    layout = describe_layout(str(base))
    out = tmp_path / "out"
    out.mkdir()
    write_settings(out, FolderTensors(base), layout, stop_tokens=("<|user|>", "not in the vocabulary"))
    written = json.loads((out / "generation_config.json").read_text())
    assert written["eos_token_id"] == [1, 2, 4, 7]
    assert set(load_base(str(base), "none", "cpu").eos_ids) == {1, 4, 7}


@pytest.mark.parametrize("has_template", [True, False], ids=["own", "none"])
def test_chat_template_is_the_one_that_the_studio_uses(tmp_path, has_template) -> None:
    base = build_base(tmp_path / "base", "llama")
    if not has_template:
        (base / "chat_template.jinja").unlink()
    out = tmp_path / "out"
    out.mkdir()
    write_settings(out, FolderTensors(base), describe_layout(str(base)))
    messages = [{"role": "user", "content": "Hello"}]
    texts = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for tokenizer in (
            load_base(str(base), "none", "cpu").tokenizer,
            hf.AutoTokenizer.from_pretrained(out),
        )
    ]
    assert texts[0] == texts[1] and "Hello" in texts[0]


def test_tokenizer_class_is_one_that_transformers_4_has(tmp_path) -> None:
    base = build_base(tmp_path / "base", "llama")
    assert json.loads((base / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    (tmp_path / "out").mkdir()
    write_settings(tmp_path / "out", FolderTensors(base), describe_layout(str(base)))
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    text = "<|user|>\nThe red lamp, 12 pumps!<|end|>"
    first, second = (hf.AutoTokenizer.from_pretrained(f) for f in (base, tmp_path / "out"))
    assert first(text)["input_ids"] == second(text)["input_ids"]
    assert type(first) is type(second) and first.eos_token_id == second.eos_token_id
    # transformers 4 expects a mapping under the new name, and a list under the old one.
    assert "extra_special_tokens" not in written and "<|user|>" in written["additional_special_tokens"]
    assert first.all_special_ids == second.all_special_ids and len(first.all_special_ids) == 5


def test_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    from core.errors import BaseModelError

    base = build_base(tmp_path / "base", "llama")
    (base / "tokenizer.json").write_text("{")
    (tmp_path / "out").mkdir()
    with pytest.raises(BaseModelError, match="tokenizer of"):
        write_settings(tmp_path / "out", FolderTensors(base), describe_layout(str(base)))
