"""Command templates: what is refused, and that a value stays one value, also in a real shell."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import SpecError
from core.remote import command_template

COMMAND = ["python", "-m", "core", "bundle", "run", "/a b/it's.zip", "-o", "/a b/$x.zip"]
VALUES = {"bundle": "/a b/it's.zip", "result": "/a b/$x.zip", "name": "Ranks: rank 2; rm -rf ~"}


@pytest.mark.parametrize(
    "template, expected",
    [
        ("run {home} {command}", "{home}"),
        ('sbatch --wrap "{command}', "No closing quotation"),
        ("sbatch", "neither {command} nor {bundle}"),
        ("", "neither"),
        ("a {command} {", "single brace"),
        ("bash -c \"ssh box '{command}'\"", "nested quotes"),
        ("bash -c 'x \"{name}\" {command}'", "nested quotes"),
        ("bash -c 'echo ${HOME}; {command}'", "{HOME}"),
    ],
)
def test_an_unsafe_template_is_refused_with_what_is_allowed(template: str, expected: str) -> None:
    with pytest.raises(SpecError) as error:
        command_template.fill(template, COMMAND, VALUES)
    assert expected in error.value.what and error.value.fix


def test_values_with_spaces_and_shell_characters_stay_one_value() -> None:
    line = shlex.join(COMMAND)
    assert command_template.fill(
        'sbatch --job-name={name} -J {name} --wrap "{command}"', COMMAND, VALUES
    ) == ["sbatch", f"--job-name={VALUES['name']}", "-J", VALUES["name"], "--wrap", line]
    assert command_template.fill("bash -c {command}", COMMAND, VALUES) == ["bash", "-c", line]
    filled = command_template.fill(
        "sh -c 'cd x; {command} --base /b; echo {name}>{result}'", COMMAND, VALUES
    )[-1]
    assert shlex.split(filled) == [
        "cd",
        "x;",
        *COMMAND,
        "--base",
        "/b;",
        "echo",
        f"{VALUES['name']}>{VALUES['result']}",
    ]


def test_a_real_shell_reads_the_values_that_were_filled_in(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s $HOME; a "folder"'
    folder.mkdir()
    words = [
        sys.executable,
        "-c",
        "import sys; open(sys.argv[1], 'w').write(sys.argv[2])",
        str(folder / "out"),
        VALUES["name"],
    ]
    subprocess.run(command_template.fill("bash -c 'true && {command}'", words, VALUES), check=True)
    assert (folder / "out").read_text() == VALUES["name"]
