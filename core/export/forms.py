"""Writes each form of an export: which files it has, under which names.

peft     adapter_config.json, adapter_model.safetensors, card, record, checksums
merged   config.json, model*.safetensors, tokenizer, template
gguf     NAME.QUANTIZATION.gguf, ollama/NAME/Modelfile
bundle   NAME-base.QUANTIZATION.gguf, NAME-lora-*.gguf, start script, Modelfile, recipes
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.data.tokens.rendering import render_chat
from core.errors import BaseModelError
from core.export import recipes
from core.export.base_layout import BaseLayout, describe_layout
from core.export.chat_forms import read_form
from core.export.merged_folder import write_settings, write_weights
from core.export.merged_tensors import MergedTensors
from core.export.peft_folder import write_peft_folder
from core.export.provenance import compute_plan, name_base, write_all_checksums, write_records
from core.export.sources import ExportSource, read_source
from core.gguf.adapter_writer import write_adapter
from core.gguf.model_tensors import FolderTensors, ModelTensors
from core.gguf.model_writer import GgufReport, plan_model, write_model
from core.spec.export import ExportSpec
from core.store.files import atomic_write, write_json
from core.store.workspace import Workspace

Step = Callable[[str, int, int], None]  # what is done, bytes so far, bytes in all


@dataclass(frozen=True)
class Target:
    """Where an export is written.

    Attributes:
        folder: receives the files; it may hold those of an attempt that was interrupted.
        step: receives the progress.
    """

    spec: ExportSpec
    source: ExportSource
    layout: BaseLayout
    folder: Path
    step: Step

    def report(self, text: str) -> Callable[[int, int], None]:
        """Reports the bytes of one file."""
        return lambda done, total: self.step(text, done, total)


def write_form(
    workspace: Workspace,
    spec: ExportSpec,
    base: str,
    fingerprint: str,
    base_folder: Path,
    folder: Path,
    step: Step,
) -> list[str]:
    """Writes the files of an export, or continues it.

    Args:
        base, fingerprint, base_folder: the base that it is of.
        folder: receives the files.

    Returns:
        what a reader should know, a sentence each.

    Raises:
        SpecError, AdapterError, BaseModelError: it cannot be written in this form.
        StorageError, DiskFull, Cancelled
    """
    step("Reading the base and the adapters", 0, 1)
    layout = describe_layout(base, base_folder)
    if layout.fingerprint != fingerprint:
        raise BaseModelError(
            f"The files of {base!r} have changed since the export began.", "Start the export again."
        )
    source = read_source(workspace, spec, layout)
    return WRITERS[spec.form](Target(spec, source, layout, folder, step))


def write_peft(target: Target) -> list[str]:
    """A folder in PEFT's layout; a mix as one adapter of the sum of its ranks."""
    report = target.report("Writing the adapter")
    write_peft_folder(target.folder, target.source, target.spec.plain_copy, report)
    rank = target.source.rank
    return [] if target.source.is_plain else [f"The mix is one adapter of rank {rank}, which is exact."]


def write_whole_model(target: Target) -> list[str]:
    """A folder for transformers."""
    tensors = MergedTensors(FolderTensors(target.layout.folder), target.source)
    spec, layout = target.spec, target.layout
    write_settings(target.folder, tensors, layout, spec.precision, target.source.stop_tokens)
    write_weights(
        target.folder,
        tensors,
        compute_plan(target.source, "merged", spec.precision, spec.shard_gb),
        spec.precision,
        int(spec.shard_gb * 1e9),
        target.report("Writing the merged weights"),
    )
    write_records(target.folder, target.source, "merged", MERGED_USE, precision=spec.precision)
    write_all_checksums(target.folder)
    return [
        f"{name} has a weight of its own, because the adapter changes it." for name in tensors.own_weights
    ]


def write_gguf(target: Target) -> list[str]:
    """The merged model as one file for llama.cpp, with a Modelfile for Ollama."""
    tensors = MergedTensors(FolderTensors(target.layout.folder), target.source)
    name = recipes.name_gguf(target.spec.file_name, target.spec.quantization)
    with _settings_of(target, tensors) as settings:
        report = _write_model(target, tensors, settings, name)
        modelfile = _write_modelfile(target, settings, name)
    use = [
        f"Load `{name}` with llama.cpp (`llama-server --model {name} --jinja`) or LM Studio.",
        "",
        *_describe_ollama(target),
    ]
    _write_records(target, "gguf", use)
    return [*_describe_report(report), *modelfile]


def write_bundle(target: Target) -> list[str]:
    """The base and each adapter as GGUF, so that the weights can still be changed."""
    spec, source, layout = target.spec, target.source, target.layout
    base = FolderTensors(layout.folder)
    base_name = recipes.name_base_gguf(spec.file_name, spec.quantization)
    served: list[recipes.ServedAdapter] = []
    for part in source.parts:
        file = recipes.name_adapter_gguf(part.file_name)
        factors = {m: part.factors(m) for m in part.modules}
        _write_adapter(target, {m: (f.a, f.b) for m, f in factors.items()}, file, part.adapter.name)
        served.append(recipes.ServedAdapter(file, part.adapter.name, part.weight))
    whole = served[0].file if source.is_plain else recipes.name_adapter_gguf(f"{spec.file_name}-sum")
    if not source.is_plain:
        sums = {m: source.factors(m) for m in source.modules}
        _write_adapter(target, {m: (f.a, f.b) for m, f in sums.items()}, whole, source.name)
    notes = []
    with _settings_of(target, base) as settings:
        if spec.include_base:
            notes += _describe_report(_write_model(target, base, settings, base_name))
        notes += _write_modelfile(target, settings, base_name, whole)
    arguments = recipes.llama_server_arguments(base_name, served)
    _write_text(target.folder / "start.sh", recipes.format_start_script(arguments))
    _write_text(target.folder / "start.cmd", recipes.format_start_batch(arguments))
    scales = {"base": base_name, "adapters": [asdict(adapter) for adapter in served]}
    write_json(target.folder / SCALES, scales)
    use = [*recipes.describe_server(base_name, served), "", *_describe_ollama(target)]
    _write_records(target, "bundle", use)
    return notes


@contextlib.contextmanager
def _settings_of(target: Target, tensors: ModelTensors) -> Iterator[Path]:
    """A folder with config, tokenizer and template of the model, which is removed at the end."""
    with tempfile.TemporaryDirectory() as scratch:
        write_settings(Path(scratch), tensors, target.layout, "base", target.source.stop_tokens)
        yield Path(scratch)


def _write_model(target: Target, tensors: ModelTensors, settings: Path, name: str) -> GgufReport:
    quantization = target.spec.quantization.upper()
    plan = plan_model(tensors, settings, quantization, target.spec.name)
    digest = compute_plan(target.source, name)
    return write_model(plan, tensors, target.folder / name, digest, target.report(f"Writing {name}"))


def _write_adapter(target: Target, factors: dict[str, Any], name: str, title: str) -> None:
    target.step(f"Writing {name}", 0, 1)
    layout = target.layout
    write_adapter(factors, layout.config.to_dict(), target.folder / name, title, name_base(layout.name))


def _write_modelfile(target: Target, settings: Path, model: str, adapter: str = "") -> list[str]:
    """Writes ollama/NAME/Modelfile; returns what it does not say."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings, local_files_only=True)

    def render(messages: Sequence[Mapping[str, str]]) -> str:
        return render_chat(tokenizer, [dict(m) for m in messages], add_generation_prompt=True)

    start = tokenizer.bos_token or ""
    has_start = bool(start) and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    form = None
    if tokenizer.chat_template:
        form = read_form(render, start if has_start else "")
    stops = [t for t in (tokenizer.eos_token, *target.source.stop_tokens) if t]
    up = "../../"
    adapter_path = f"{up}{adapter}" if adapter else ""
    made = recipes.format_modelfile(up + model, adapter_path, form, stops=stops)
    path = target.folder / "ollama" / target.spec.file_name / "Modelfile"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_text(path, made.text)
    return made.notes


def _describe_ollama(target: Target) -> list[str]:
    """How the Modelfile is used, in lines of Markdown."""
    name = target.spec.file_name
    command = f"ollama create {name.lower()} -f ollama/{name}/Modelfile"
    return ["## Ollama", "", "In this folder:", "", "```sh", command, "```"]


def _write_records(target: Target, form: str, use: Sequence[str]) -> None:
    write_records(target.folder, target.source, form, use, quantization=target.spec.quantization)
    write_all_checksums(target.folder)


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(text)


def _describe_report(report: GgufReport) -> list[str]:
    kinds = ", ".join(f"{count} as {kind}" for kind, count in report.types.items())
    return [f"Tensors: {kinds}.", *report.fallbacks, *report.notes]


SCALES = "scales.json"  # of a bundle: its base, and its adapters with their weights
MERGED_USE = ("Load it with `AutoModelForCausalLM.from_pretrained(folder)` of transformers, or with vLLM.",)
WRITERS: dict[str, Callable[[Target], list[str]]] = {
    "peft": write_peft,
    "merged": write_whole_model,
    "gguf": write_gguf,
    "bundle": write_bundle,
}
