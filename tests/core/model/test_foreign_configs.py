"""The config of a base is a stranger's file: it names classes and kernels, and none of them is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.errors import BaseModelError
from core.model.base import load_base


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_t14_code_that_a_config_names_is_not_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    (folder / "own.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nclass Model: ...\nclass Config: ...\n"
    )
    change_config(folder, auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    base = load_base(str(folder), "none", "cpu")
    assert type(base.model).__module__.startswith("transformers.") and not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_t15_a_kernel_of_the_hub_that_a_config_names_is_refused_or_ignored(folder: Path, key: str) -> None:
    change_config(folder, **{key: "someone/kernel"})
    try:
        base = load_base(str(folder), "none", "cpu")
    except BaseModelError as e:
        assert "'someone/kernel', which is code of the Hub" in e.what and e.fix
    else:
        assert base.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kernel", ["flash_attention_2", "eager", "flex_attention"])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_t15_the_studio_chooses_the_kernel_whatever_a_config_says(
    folder: Path, key: str, kernel: str
) -> None:
    change_config(folder, **{key: kernel})
    assert load_base(str(folder), "none", "cpu").model.config._attn_implementation == "sdpa"
