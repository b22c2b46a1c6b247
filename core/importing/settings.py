"""Settings of a foreign adapter that decide what its numbers mean: an allow-list.

A setting that is not known here and is switched on blocks the import, because it may change the sum.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from core.importing import mlx_form, tools
from core.importing.findings import Repair
from core.importing.names import list_names
from core.importing.peft_form import list_unsafe_rules
from core.model.lora_init import FULL_SVD_SIZE

if TYPE_CHECKING:
    from core.importing.examination import Examination
    from core.importing.foreign import Factors

CONVERT_START = Repair(
    "convert-start",
    "Convert to plain LoRA",
    "It becomes plain LoRA of twice the rank, for the unchanged base.",
)
SUBTRACT_START = Repair(
    "subtract-start",
    "Subtract the start that is in its folder",
    "It becomes plain LoRA of twice the rank, for the unchanged base.",
)
CONVERT_DORA = Repair(
    "convert-dora",
    "Convert to plain LoRA",
    "It answers the same, can also be baked and exported everywhere, and its rank and file are larger.",
)
ALPHA_IS_RANK = Repair("alpha-rank", "Use alpha = rank", "The update is added as it is.")
ALPHA_IS_TWICE = Repair("alpha-twice", "Use alpha = 2 x rank", "The update is doubled, as many tools do.")
SCALE_ALONE = Repair("mlx-scale", "Use the scale alone", "As mlx-lm reads it since the middle of 2024.")
SCALE_ALPHA = Repair("mlx-alpha", "Use scale x alpha / rank", "As mlx-lm read it until the middle of 2024.")
GROUPED = Repair(
    "experts-grouped", "Read as Unsloth before 2026.9.6", "The columns of lora_B are put into peft's order."
)
RANK_MAJOR = Repair("experts-peft", "Read as peft", "The columns of lora_B stay as they are.")
# Settings without a meaning for an adapter that is ready, or whose effect is read from the tensors.
HARMLESS = {
    "peft_type", "task_type", "r", "lora_alpha", "alpha_pattern", "rank_pattern", "target_modules",
    "target_parameters", "base_model_name_or_path", "auto_mapping", "revision", "inference_mode", "bias",
    "lora_dropout", "fan_in_fan_out", "use_rslora", "use_dora", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "exclude_modules", "modules_to_save", "trainable_token_indices", "peft_version",
    "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config",
    "ensure_weight_tying", "qalora_group_size", "lora_bias", "lora_B_layout", "enable_lora", "merge_weights",
    "fine_tune_type", "layer_replication", "embedding_pad_size", "encoder_hidden_size",
}  # fmt: skip
FLAGS = ("use_rslora", "use_dora")
# Settings whose value changes the sum, and why such an adapter is refused.
VARIANTS = {
    "use_qalora": "its factors are shared by groups of inputs",
    "use_bdlora": "its factors are block-diagonal",
    "alora_invocation_tokens": "it applies to the tokens after a certain text only",
    "arrow_config": "it routes between several adapters",
    "kasa_config": "it needs singular values of the base beside its factors",
    "velora_config": "its factors have a form of their own",
    "monteclora_config": "its factors are drawn at random",
    "megatron_config": "its layers are split over several devices",
}
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
COMPUTABLE_STARTS = ("pissa", "olora")
RETRAIN = "Convert it to plain LoRA with the tool that made it, or merge it into its base."


def check(state: Examination) -> None:
    """Checks every setting of the adapter."""
    _check_alpha(state)
    _check_variants(state)
    _check_start(state)
    _check_dora(state)
    if state.plan.experts:
        _check_experts(state)


def _check_alpha(state: Examination) -> None:
    """Checks that every layer has a scaling."""
    config = state.foreign.settings
    if rules := list_unsafe_rules(config):
        state.block(
            "alpha-rules", f"alpha_pattern has a rule that cannot be read: {rules[0][:120]!r}.",
            "Write the full names of its layers into alpha_pattern.",
        )  # fmt: skip
    alphas = [f.alpha for f in state.plan.layers.values()]
    if any(a is None for a in alphas):
        chosen = state.block(
            "no-alpha",
            "No configuration states alpha, so the strength of its update is not known.",
            "Put its adapter_config.json beside the weights; or choose, and compare the answers.",
            ALPHA_IS_RANK,
            ALPHA_IS_TWICE,
        )
        if chosen:
            state.plan.layers = {
                m: _with_alpha(f, f.rank * (2.0 if chosen == ALPHA_IS_TWICE.id else 1.0))
                for m, f in state.plan.layers.items()
            }
    elif any(not 0 < float(a or 0) < float("inf") for a in alphas):
        state.block("alpha", "Its alpha is not a number above 0.", "Correct its configuration.")
    stated = mlx_form.read_early_alpha(state.foreign.files.config)
    if stated is None:
        return
    chosen = state.block(
        "mlx-scale",
        f"Its configuration states both a scale and alpha {stated:g}.",
        "mlx-lm has read these in two ways, and the file does not say which version wrote it.",
        SCALE_ALONE,
        SCALE_ALPHA,
    )
    if chosen == SCALE_ALPHA.id:
        state.plan.layers = {
            m: _with_alpha(f, (f.alpha or 0.0) * stated / f.rank) for m, f in state.plan.layers.items()
        }


def _with_alpha(factors: Factors, alpha: float) -> Factors:
    return replace(factors, alpha=alpha)


def _check_variants(state: Examination) -> None:
    config = state.foreign.settings
    for name, reason in VARIANTS.items():
        if config.get(name):
            state.properties.append(name)
            state.block(
                "variant", f"{name} is set: {reason}.", f"Its update is not a plain product. {RETRAIN}"
            )
    for name in FLAGS:
        if config.get(name) not in (None, True, False):
            shown = json.dumps(config[name], default=str)[:80]
            state.block(
                "setting", f"{name} must be true or false, got {shown}.", "Correct its configuration."
            )
    if config.get("layer_replication"):
        state.block(
            "layer-replication", "layer_replication is set: it changes the number of layers of the base.",
            "Repeat the layers in a base of its own, and load that.",
        )  # fmt: skip
    for name, value in config.items():
        if name in HARMLESS or name in VARIANTS or not value:
            continue
        if name.startswith("use_") or name.endswith("_config"):
            shown = json.dumps(value, default=str)[:80]
            state.block("variant", f"The setting {name} is {shown}, and is not known here.", RETRAIN)
        else:
            state.note("setting", f"The setting {name[:80]} is not known here, and is left out.")


def _check_start(state: Examination) -> None:
    """PiSSA and OLoRA were trained on a base from which their start was subtracted."""
    start = state.foreign.settings.get("init_lora_weights", True)
    if start in PLAIN_STARTS:
        return
    shown = str(start)[:60]
    names = {"olora": "OLoRA", "corda": "CorDA", "lora_ga": "LoRA-GA", "loftq": "LoftQ"}
    state.properties.append(names.get(shown, "PiSSA" if "pissa" in shown else shown))
    what = f"init_lora_weights is {shown!r}: its start was subtracted from the base that it was trained on."
    has_start = bool(state.plan.layers) and all(f.start is not None for f in state.plan.layers.values())
    if has_start and str(start).partition("_")[0] != "loftq":  # whose base is also rounded to 4 bits
        follows = f"Its folder {state.foreign.files.start_name!r} holds the adapter before its first step."
        state.block("start", what, follows, SUBTRACT_START)
        return
    if start not in COMPUTABLE_STARTS or state.plan.experts:
        # CorDA starts from activations on the data of its user; pissa_niter_N from random projections, which
        # find another start every time; LoRA-GA from gradients.
        state.block(
            "start", what,
            "Its start cannot be computed from the base. Put the adapter as it was before its first step "
            "(adapter_model.safetensors) into a folder called initial_adapter beside it, and import both; or "
            "convert it where it was trained: save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...).",
        )  # fmt: skip
        return
    state.block(
        "start", what, "On the unchanged base it would answer wrongly without an error.", CONVERT_START
    )


def _check_dora(state: Examination) -> None:
    with_magnitude = [m for m, f in state.plan.layers.items() if f.magnitude is not None]
    if not state.plan.layers or not (with_magnitude or state.foreign.settings.get("use_dora")):
        return
    state.properties.append("DoRA")
    missing = [m for m in state.plan.layers if m not in with_magnitude]
    wrong = [
        m for m in with_magnitude
        if state.plan.layers[m].magnitude.shape[0] != state.plan.layers[m].b.shape[0]  # type: ignore[union-attr]
    ]  # fmt: skip
    if missing and state.foreign.settings.get("use_dora") or wrong:
        state.block(
            "damaged", f"The magnitude of DoRA is missing or misshapen in {list_names(missing or wrong)}.",
            "The file is damaged: copy it again from where the adapter was trained.",
        )  # fmt: skip
        return
    what = "It is a DoRA adapter: it rescales the rows of the base's weights."
    if any(m.replace(".base_layer", "") in state.plan.experts for m in with_magnitude):
        state.block("dora", f"{what} It does so in fused experts.", RETRAIN)
        return
    if state.foreign.tool.startswith("torchtune"):
        state.block("dora", what, f"torchtune writes a wrong DoRA of q and k in this form. {RETRAIN}")
        return
    sides = [min(f.b.shape[0], f.a.shape[1]) for f in state.plan.layers.values()]
    follows = (
        "In a mix its change is scaled as a whole: at weight 1, alone, it answers as in peft, and beside "
        "other adapters the changes are added."
    )
    convert = [CONVERT_DORA] if max(sides) <= FULL_SVD_SIZE else []
    if missing:  # some layers are plain, which one DoRA configuration cannot say
        state.block("dora", f"{what} Other layers are plain LoRA.", "It has to be converted.", *convert)
        return
    if convert:
        follows += f" Converted, it would have a rank of up to {max(sides)}."
    state.warn("dora", what, follows, *convert)


def _check_experts(state: Examination) -> None:
    """Unsloth grouped the columns of lora_B by expert; peft reads them by rank, in the same shape."""
    config, files = state.foreign.settings, state.foreign.files
    state.properties.append("fused experts")
    stated = config.get("target_parameters")
    names = [n for n in stated if isinstance(n, str)] if isinstance(stated, list) else []
    known = {n for path in state.plan.experts for n in state.base.layers[path].parameters}
    state.plan.target_parameters = tuple(n for n in names if n.rsplit(".", 1)[-1] in known)
    depth = max(m.count(".base_layer") for m in state.plan.layers) + 1
    if len(state.plan.target_parameters) != depth:
        state.block(
            "experts", f"target_parameters names {len(state.plan.target_parameters)} weights of the experts, "
            f"and the file has factors of {depth}.", "Correct target_parameters in adapter_config.json.",
        )  # fmt: skip
        return
    layout = config.get("lora_B_layout")
    if layout == "rank_major" or (layout is None and not tools.is_unsloth(files)):
        return
    if layout == "grouped_by_expert":
        state.plan.repairs.add(GROUPED.id)
        state.note(
            "experts", "lora_B is grouped by expert, as its configuration says.", "Its columns are reordered."
        )
        return
    state.block(
        "experts",
        "Unsloth made it, and the file does not say how the columns of lora_B are ordered.",
        "Versions before 2026.9.6 group them by expert, and peft reads them by rank: the wrong order loads "
        "without an error.",
        GROUPED,
        RANK_MAJOR,
    )
