"""Recipes are read back by the tools that they are for: a shell, JSON, and a parser of Modelfiles."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import SpecError
from core.export.chat_forms import read_form
from core.export.recipes import (
    ServedAdapter,
    choose_vllm_rank,
    describe_openvino,
    describe_server,
    describe_vllm,
    format_modelfile,
    format_request,
    format_start_batch,
    format_start_script,
    llama_server_arguments,
    name_adapter_gguf,
    name_base_gguf,
    name_gguf,
)
from core.spec.mix import Sampling
from tests.core.export.test_chat_forms import QWEN, make_render

ADAPTERS = [
    ServedAdapter("law.lora.gguf", "Law | *new*", 0.7),
    ServedAdapter("chat.lora.gguf", "Chat", 0.0),
    ServedAdapter("odd.lora.gguf", "`Odd`\n# x", -1.25),
]


def test_every_adapter_and_scale_is_named_zeros_included() -> None:
    arguments = llama_server_arguments("m-base.Q8_0.gguf", ADAPTERS, context=512)
    assert arguments == [
        "llama-server", "--model", "m-base.Q8_0.gguf", "--lora-scaled",
        "law.lora.gguf:0.7,chat.lora.gguf:0,odd.lora.gguf:-1.25", "--ctx-size", "512", "--jinja",
        "--port", "8080",
    ]  # fmt: skip
    assert "--lora-scaled" not in llama_server_arguments("m.gguf", [])


def test_requests_name_every_id() -> None:
    body = json.loads(format_request(ADAPTERS, 'Say "it"'))
    assert body["lora"] == [
        {"id": 0, "scale": 0.7},
        {"id": 1, "scale": 0.0},
        {"id": 2, "scale": -1.25},
    ]
    assert body["messages"][0]["content"] == 'Say "it"'


@pytest.mark.skipif(os.name == "nt", reason="needs sh")
def test_start_script_runs_from_any_folder(tmp_path) -> None:
    folder, tools = tmp_path / "my $HOME folder's", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    (tools / "llama-server").write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.getcwd(), *sys.argv[1:]]))\n"
    )
    (tools / "llama-server").chmod(0o755)
    arguments = llama_server_arguments("m.gguf", ADAPTERS)
    (folder / "start.sh").write_text(format_start_script(arguments))
    out = subprocess.run(
        ["sh", str(folder / "start.sh"), "--host", "0.0.0.0"],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(out.stdout) == [str(folder), *arguments[1:], "--host", "0.0.0.0"]
    batch = format_start_batch(arguments)
    assert batch.endswith("\r\n") and '"law.lora.gguf:0.7,chat.lora.gguf:0,odd.lora.gguf:-1.25"' in batch


def test_server_page_escapes_what_a_user_typed() -> None:
    text = "\n".join(describe_server("m.gguf", ADAPTERS))
    assert r"| 0 | Law \| \*new\* | `law.lora.gguf` | 0.7 |" in text
    assert "\n# x" not in text and "`Odd`" not in text
    command = text.split("```sh\n")[2].split("\n```")[0]
    assert json.loads(shlex.split(command)[-1])["lora"][1] == {"id": 1, "scale": 0.0}


@pytest.mark.parametrize(
    "name", ["a b.gguf", "x;rm.gguf", "-m.gguf", "a:1.gguf", "a,b.gguf", "$(x).gguf", ""]
)
def test_names_that_a_list_or_shell_would_split_are_refused(name) -> None:
    for make in (
        lambda: llama_server_arguments("m.gguf", [ServedAdapter(name, "x", 1.0)]),
        lambda: llama_server_arguments(name, []),
        lambda: format_modelfile(name),
        lambda: format_modelfile("m.gguf", f"folder/{name}"),
    ):
        with pytest.raises(SpecError, match="name of an exported file"):
            make()


def test_file_names_are_those_of_the_portfolio() -> None:
    assert name_gguf("science-0p5", "q4_k_m") == "science-0p5-lora.Q4_K_M.gguf"
    assert name_gguf("x", "f16") == "x-lora.F16.gguf"
    assert name_base_gguf("x", "q8_0") == "x-base.Q8_0.gguf"
    assert name_adapter_gguf("law") == "law.lora.gguf"


SAMPLING = Sampling(max_new_tokens=64, temperature=0.5, top_k=20, repetition_penalty=1.1, stop=("END",))


def make_modelfile(folder: Path, **options: object) -> str:
    for name in ("m.gguf", "law.lora.gguf"):
        (folder / name).write_bytes(b"GGUF" + bytes(20))
    form = read_form(make_render(QWEN))
    settings = {"sampling": SAMPLING, "stops": ["<|im_end|>"], "context": 2048, **options}
    return format_modelfile("m.gguf", "law.lora.gguf", form, **settings).text  # type: ignore[arg-type]


def test_modelfile_is_what_its_parser_reads(tmp_path) -> None:
    lint = pytest.importorskip("owist_modelfile_lint", reason="the parser of Modelfiles is not installed")
    from owist_modelfile_lint.parser import parse

    text = make_modelfile(tmp_path, system='You are "kind".\nSpeak # plainly.')
    (tmp_path / "Modelfile").write_text(text, encoding="utf-8")
    result = lint.lint(tmp_path / "Modelfile", estimate_resources=False)
    assert result.ok and not result.errors, [str(i) for i in result.issues]
    read = [(i.keyword, i.args) for i in parse(text).instructions]
    assert ("FROM", "./m.gguf") in read and ("ADAPTER", "./law.lora.gguf") in read
    assert ("SYSTEM", 'You are "kind".\nSpeak # plainly.') in read
    parameters = [args for keyword, args in read if keyword == "PARAMETER"]
    assert parameters == [
        "temperature 0.5", "top_k 20", "top_p 1", "min_p 0", "repeat_penalty 1.1", "seed 0", "num_predict 64",
        "num_ctx 2048", 'stop "<|im_end|>"', 'stop "END"',
    ]  # fmt: skip


def test_unknown_templates_are_said_and_left_out() -> None:
    made = format_modelfile("m.gguf", form=None, system="Be kind.")
    assert "TEMPLATE" not in made.text and "SYSTEM" not in made.text
    assert "cannot be written for Ollama" in made.notes[0]


@pytest.mark.parametrize("text", ['say """x"""', 'ends with "', "a\0b"])
def test_texts_that_would_end_a_value_are_left_out_with_a_note(tmp_path, text) -> None:
    form = read_form(make_render(QWEN))
    made = format_modelfile("m.gguf", form=form, system=text, stops=[text])
    assert text not in made.text and len(made.notes) == 2
    lines = made.text.splitlines()
    assert not [line for line in lines if line.startswith(("SYSTEM", "PARAMETER stop"))]


@pytest.mark.parametrize(
    ("rank", "allowed"), [(1, 1), (2, 8), (16, 16), (17, 32), (257, 320), (512, 512), (513, None)]
)
def test_vllm_takes_the_next_rank_that_it_allows(rank, allowed) -> None:
    assert choose_vllm_rank(rank) == allowed
    text = "\n".join(describe_vllm("./my folder", "it's mine", "Qwen/Qwen2.5-0.5B-Instruct", rank))
    if allowed is None:
        assert "svd" in text and "vllm serve" not in text
        return
    command = shlex.split(text.split("```sh\n")[1].split("\n```")[0])
    assert command[command.index("--max-lora-rank") + 1] == str(allowed)
    assert json.loads(command[-1]) == {"name": "it's mine", "path": "./my folder"}


def test_openvino_gets_the_scaling_as_its_alpha() -> None:
    text = "\n".join(describe_openvino("adapter_model.safetensors", 16 / 8))
    code = text.split("```python\n")[1].split("\n```")[0]
    compile(code, "recipe", "exec")
    assert 'ov.Adapter("adapter_model.safetensors")' in code and "AdapterConfig(adapter, 2)" in code
    assert "```" not in "\n".join(describe_openvino("x.safetensors", None))
