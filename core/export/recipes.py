"""Texts that say how exported files are used: llama-server, Ollama, vLLM and OpenVINO.

Names that a user typed are quoted in the way of each text. What a runtime cannot do is said in a note.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import SpecError
from core.export.chat_forms import ChatForm, format_go
from core.spec.mix import Sampling
from core.store.model_card import escape_markdown

SERVER_PORT = 8080
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes (vLLM 0.32)
QUANTIZATION_LABELS = {"q8_0": "Q8_0", "q4_0": "Q4_0", "q4_k_m": "Q4_K_M"}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]+")
TRIPLE = '"""'


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter GGUF file of a bundle.

    Attributes:
        file: its name, beside the base.
        name: to show. weight: the scale that the mix gives it; 0 is off.
    """

    file: str
    name: str
    weight: float


def name_gguf(file_name: str, quantization: str) -> str:
    """The name of a merged model: "law-lora.Q4_K_M.gguf".

    Args:
        file_name: `ExportSpec.file_name`.
        quantization: of `ExportSpec`.
    """
    return f"{file_name}-lora.{_label(quantization)}.gguf"


def name_base_gguf(file_name: str, quantization: str) -> str:
    """The name of the base in a bundle."""
    return f"{file_name}-base.{_label(quantization)}.gguf"


def name_adapter_gguf(part_name: str) -> str:
    """The name of an adapter in a bundle."""
    return f"{part_name}.lora.gguf"


def _label(quantization: str) -> str:
    return QUANTIZATION_LABELS.get(quantization, quantization.upper())


# --- llama-server


def llama_server_arguments(base: str, adapters: Sequence[ServedAdapter], context: int = 0) -> list[str]:
    """The arguments of `llama-server`; every adapter is named with its scale, those at 0 included.

    Args:
        base, adapters: files in the current folder.
        context: tokens of the context; 0 takes the model's own.
    """
    arguments = ["llama-server", "--model", _check_file(base)]
    if adapters:
        scales = ",".join(f"{_check_file(a.file)}:{_number(a.weight)}" for a in adapters)
        arguments += ["--lora-scaled", scales]
    if context:
        arguments += ["--ctx-size", str(context)]
    return [*arguments, "--jinja", "--port", str(SERVER_PORT)]


def format_start_script(arguments: Sequence[str]) -> str:
    """A script for sh that starts a server in the folder of the script."""
    return (
        "#!/bin/sh\n"
        "# Starts llama.cpp's server with the files of this folder.\n"
        'cd "$(dirname "$0")" || exit 1\n'
        f'exec {shlex.join(arguments)} "$@"\n'
    )


def format_start_batch(arguments: Sequence[str]) -> str:
    """The same for Windows."""
    quoted = " ".join(a if _PLAIN_NAME.fullmatch(a) else f'"{a}"' for a in arguments)
    return f'@echo off\r\ncd /d "%~dp0"\r\n{quoted} %*\r\n'


def format_request(adapters: Sequence[ServedAdapter], question: str = "Hello") -> str:
    """The JSON of a request that names every adapter by its id.

    llama.cpp switches adapters off that a list leaves out, takes the server's own scales for an empty list,
    and answers with the plain base for an id that it does not have.
    """
    body: dict[str, Any] = {"messages": [{"role": "user", "content": question}]}
    body["lora"] = [{"id": i, "scale": a.weight} for i, a in enumerate(adapters)]
    return json.dumps(body, ensure_ascii=False)


def describe_server(base: str, adapters: Sequence[ServedAdapter], context: int = 0) -> list[str]:
    """How a bundle is served, in lines of Markdown."""
    arguments = llama_server_arguments(base, adapters, context)
    table = [
        f"| {i} | {escape_markdown(a.name)} | `{a.file}` | {_number(a.weight)} |"
        for i, a in enumerate(adapters)
    ]
    request = shlex.join(
        [
            "curl",
            f"http://localhost:{SERVER_PORT}/v1/chat/completions",
            "--json",
            format_request(adapters),
        ]
    )
    return [
        "## llama.cpp",
        "",
        "`start.sh` (or `start.cmd`) starts the server with every adapter and its weight:",
        "",
        "```sh",
        shlex.join(arguments),
        "```",
        "",
        "| id | adapter | file | scale |",
        "|---|---|---|---|",
        *table,
        "",
        "A request can change the scales. It must name every id: an adapter that its list leaves out is off, "
        "an empty list means the scales that the server was started with, and an unknown id is ignored.",
        "",
        "```sh",
        request,
        "```",
    ]


# --- Ollama


@dataclass(frozen=True)
class Modelfile:
    """A Modelfile of Ollama.

    Attributes:
        notes: what it does not say, a sentence each.
    """

    text: str
    notes: list[str] = field(default_factory=list)


def format_modelfile(
    model: str,
    adapter: str = "",
    form: ChatForm | None = None,
    sampling: Sampling | None = None,
    stops: Sequence[str] = (),
    system: str = "",
    context: int = 0,
) -> Modelfile:
    """Writes a Modelfile.

    Args:
        model: path of the GGUF file, from the folder of the Modelfile.
        adapter: path of one adapter GGUF file, or ""; Ollama takes only one: of a mix, the sum of its ranks.
        form: of the chat template; None leaves TEMPLATE out.
        stops: texts of the tokens that end an answer.
        system: the system message, or "".
        context: tokens; 0 leaves Ollama's own.

    Raises:
        SpecError: a path is not one that a Modelfile can hold.
    """
    notes: list[str] = []
    lines = [f"FROM {_check_path(model)}"]
    if adapter:
        lines.append(f"ADAPTER {_check_path(adapter)}")
    template = format_go(form) if form else ""
    if template and TRIPLE not in template:
        lines.append(f"TEMPLATE {TRIPLE}{template}{TRIPLE}")
        notes += form.notes if form else ()
    else:
        notes.append(
            "The chat template of this model cannot be written for Ollama, so the Modelfile has none: "
            "Ollama then takes the one that it finds in the GGUF file, or sends the plain text. Compare "
            "an answer with the studio's before you rely on it."
        )
    for name, value in _list_parameters(sampling or Sampling(), context):
        lines.append(f"PARAMETER {name} {value}")
    for stop in dict.fromkeys([*stops, *(sampling.stop if sampling else ())]):
        if quoted := _quote(stop):
            lines.append(f"PARAMETER stop {quoted}")
        else:
            notes.append(f"The stop string {stop!r} cannot be written in a Modelfile.")
    if system and form is not None and form.system is not None:
        if quoted := _quote(system):
            lines.append(f"SYSTEM {quoted}")
        else:
            notes.append("The system message holds three quotes in a row, which a Modelfile cannot hold.")
    return Modelfile("\n".join(lines) + "\n", notes)


def _list_parameters(sampling: Sampling, context: int) -> list[tuple[str, str]]:
    values: list[tuple[str, float]] = [
        ("temperature", sampling.temperature),
        ("top_k", sampling.top_k),
        ("top_p", sampling.top_p),
        ("min_p", 0.0),
        ("repeat_penalty", sampling.repetition_penalty),
        ("seed", sampling.seed),
        ("num_predict", sampling.max_new_tokens),
    ]
    if context:
        values.append(("num_ctx", context))
    return [(name, _number(value)) for name, value in values]


def _quote(text: str) -> str:
    """A text as a value of a Modelfile; "" where it cannot be one."""
    if not text or TRIPLE in text or text.endswith('"') or "\0" in text or "\r" in text:
        return ""
    if "\n" in text or '"' in text:
        return f"{TRIPLE}{text}{TRIPLE}"
    return f'"{text}"'


# --- vLLM


def choose_vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank that holds a rank; None above the largest."""
    return next((allowed for allowed in VLLM_RANKS if rank <= allowed), None)


def describe_vllm(folder: str, name: str, base: str, rank: int) -> list[str]:
    """How vLLM serves a PEFT folder, in lines of Markdown.

    Args:
        folder: of the PEFT adapter. name: under which requests name it. base: a Hub id or a folder.
        rank: the largest of a module; of a mix, the sum of its adapters' ranks.
    """
    allowed = choose_vllm_rank(rank)
    if allowed is None:
        return [
            "## vLLM",
            "",
            f"Its rank is {rank}, and vLLM takes ranks up to {VLLM_RANKS[-1]}. Bake the mix with the method "
            f"svd at rank {VLLM_RANKS[-1]} or less and export that adapter, or export the merged model.",
        ]
    module = json.dumps({"name": name, "path": folder})
    arguments = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(allowed)]
    return [
        "## vLLM",
        "",
        f"Its rank is {rank}; {allowed} is the next that `--max-lora-rank` takes. Requests name the adapter "
        "as their model.",
        "",
        "```sh",
        shlex.join([*arguments, "--lora-modules", module]),
        "```",
    ]


# --- OpenVINO


def describe_openvino(weights: str, scaling: float | None) -> list[str]:
    """How OpenVINO GenAI uses a PEFT folder, in lines of Markdown.

    It reads the factors only, not adapter_config.json, so that the scaling is passed as `alpha`.

    Args:
        weights: the file with the factors.
        scaling: alpha / rank of all modules; None where they differ.
    """
    head = ["## OpenVINO", ""]
    if scaling is None:
        return [
            *head,
            "The scaling differs between the layers, which OpenVINO's AdapterConfig cannot express. Export "
            "the merged model.",
        ]
    return [
        *head,
        "OpenVINO GenAI does not read alpha from adapter_config.json; it is passed here as the number.",
        "",
        "```python",
        "import openvino_genai as ov",
        "",
        f"adapter = ov.Adapter({json.dumps(weights)})",
        f"config = ov.AdapterConfig(adapter, {_number(scaling)})",
        'pipe = ov.LLMPipeline("base-openvino", "CPU", adapters=config)  # optimum-cli export openvino',
        'answer = pipe.generate("Hello", max_new_tokens=64)',
        "```",
    ]


def _check_file(name: str) -> str:
    """A name of a file that neither a shell nor llama.cpp's lists take for something else."""
    if not _PLAIN_NAME.fullmatch(name) or name.startswith("-"):
        raise SpecError(
            f"The name of an exported file must have letters, digits, dots, dashes and underscores, "
            f"got {name!r}.",
            "Choose another name for the export.",
        ).at("name")
    return name


def _check_path(path: str) -> str:
    """A relative path for a Modelfile: parts as `_check_file` takes them."""
    parts = path.split("/")
    for part in parts:
        if part not in (".", ".."):
            _check_file(part)
    return path if path.startswith(".") else f"./{path}"


def _number(value: float) -> str:
    """A number without an exponent, which every parser reads."""
    if value == int(value):
        return str(int(value))
    return f"{value:.10f}".rstrip("0").rstrip(".")
