"""Names of tensors, rules of patterns, and names of layers, in every form that tools write."""

from __future__ import annotations

import pytest

from core.importing.names import find_prefixes, list_names, rename
from core.importing.peft_form import alpha_of, is_safe_rule, parse_name

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        f"base_model.model.{LAYER}.lora_A.weight": (LAYER, "A"),
        f"base_model.model.{LAYER}.lora_B.default.weight": (LAYER, "B"),
        f"module.base_model.model.{LAYER}.lora_B.weight": (LAYER, "B"),
        f"_orig_mod.base_model.model.{LAYER}.lora_A.weight": (LAYER, "A"),
        f"{LAYER}.lora_magnitude_vector": (LAYER, "magnitude"),
        f"{LAYER}.lora_magnitude_vector.default.weight": (LAYER, "magnitude"),
        f"base_model.model.{LAYER}.lora_B.bias": (LAYER, "lora_bias"),
        f"base_model.model.{LAYER}.bias": (LAYER, "bias"),
        "base_model.model.lm_head.base_layer.weight": ("lm_head", "base"),
        "base_model.model.lm_head.weight": ("lm_head", "copy"),
        "base_model.model.lm_head.modules_to_save.default.weight": ("lm_head", "copy"),
        "base_model.model.model.embed_tokens.lora_embedding_A": ("model.embed_tokens", "embedding"),
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": (
            "model.embed_tokens", "tokens"),
        "base_model.model.x.experts.base_layer.lora_A.weight": ("x.experts.base_layer", "A"),
        "base_model.model.x.ia3_l": ("base_model.model.x", "unknown"),
    }.items(),
)  # fmt: skip
def test_a_name_gives_its_layer_and_its_kind(name: str, expected: tuple[str, str]) -> None:
    if expected[1] == "unknown":
        assert parse_name(name)[1] == "unknown"
    else:
        assert parse_name(name) == expected


def test_the_first_rule_that_names_a_layer_gives_its_alpha() -> None:
    patterns = {"k_proj": 1, r"layers\.0\..*_proj": 2, "q_proj": 3}
    config = {"lora_alpha": 16, "alpha_pattern": patterns}
    assert alpha_of(config, LAYER) == 2
    assert alpha_of(config, LAYER.replace("0", "1")) == 3
    assert alpha_of(config, "model.layers.0.self_attn.k_proj") == 1
    assert alpha_of(config, "lm_head") == 16
    assert alpha_of({"r": 8}, LAYER) == 8  # of peft
    assert alpha_of({"lora_alpha": True}, LAYER) is None
    assert alpha_of({}, LAYER) is None


@pytest.mark.parametrize(
    ("rule", "safe"),
    {
        "q_proj": True,
        r"^model\.layers\.(0|1)\..*_proj": True,
        "(?:a|b)c": True,
        "(ab)*": False,
        ".*.*.*.*": False,
        "(?=a)b": False,
        "a{2,9}": False,
        "a" * 1001: True,  # a plain name
        ("a" * 1000) + "|": False,
        "(": False,
    }.items(),
)
def test_only_rules_that_take_microseconds_are_matched(rule: str, safe: bool) -> None:
    assert is_safe_rule(rule) is safe


def test_layers_are_renamed_only_where_all_names_fit_one_way() -> None:
    known = [f"model.layers.{i}.q_proj" for i in range(3)] + ["vision.layers.0.k_proj"]
    strangers = [f"language_model.model.layers.{i}.q_proj" for i in range(3)]
    prefixes = find_prefixes(strangers, known)
    assert prefixes is not None
    assert [rename(n, prefixes) for n in strangers] == known[:3]
    assert find_prefixes([*strangers, "language_model.model.layers.3.q_proj"], known) is None
    assert find_prefixes(["x.layers.0.o_proj"], known) is None
    assert find_prefixes([f"layers.{i}.q_proj" for i in range(3)], known) == ("", "model.")


def test_names_in_a_sentence_are_few() -> None:
    assert list_names(["a", "b", "a"]) == "a, b"
    assert list_names("abcde") == "a, b, c and 2 more"
