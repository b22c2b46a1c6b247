"""Dockerfile, compose.yaml and .dockerignore: what can be checked without a container engine."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import launch
from studio.server.guard import route_role

ROOT = Path(__file__).resolve().parents[1]


def read_instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: (name, arguments), with continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined if line.strip())
    ]


def find(name: str) -> list[str]:
    return [rest for found, rest in read_instructions() if found == name]


def read_arguments() -> dict[str, str]:
    return dict(rest.split("=", 1) for rest in find("ARG"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    value = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def test_the_image_is_pinned_to_a_release_of_a_supported_python() -> None:
    (image,) = find("FROM")
    match = re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-[a-z]+", image)
    assert match is not None
    low, high = launch.PYTHON_VERSIONS
    assert low <= (int(match.group(1)), int(match.group(2))) <= high


def test_torch_has_the_version_that_requirements_pin_and_the_cpu_build() -> None:
    arguments = read_arguments()
    assert arguments["TORCH_VERSION"] == launch.read_pins(launch.REQUIREMENTS)["torch"]
    assert arguments["TORCH_INDEX"].endswith("/whl/cpu")


def test_the_container_runs_as_a_user_without_rights() -> None:
    names = [name for name, _ in read_instructions()]
    (user,) = find("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) and "useradd" in " ".join(find("RUN"))
    assert names.index("USER") > max(i for i, n in enumerate(names) if n in ("RUN", "COPY"))
    assert names.index("USER") < names.index("ENTRYPOINT")


def test_the_health_check_asks_an_address_that_needs_no_login() -> None:
    (check,) = find("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[:2] == ["python", "-c"] and compile(command[2], "health", "exec")
    (address,) = re.findall(r"http://127\.0\.0\.1:7860(/\w+)", command[2])
    assert route_role(address).label == "none"


def test_every_file_that_is_copied_exists_and_reaches_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in ignored
    sources = [source for rest in find("COPY") for source in rest.split()[:-1]]
    assert {"launch.py", "core", "studio", "assets", "requirements.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and f"!{source}" in ignored, source
    for secret in ("logins.txt", "workspace", ".git", ".env", "tests"):
        assert f"!{secret}" not in ignored and fnmatch.fnmatch(secret, "*")


def test_the_arguments_are_those_that_launch_accepts() -> None:
    (entry,) = find("ENTRYPOINT")
    command = json.loads(entry)
    arguments = launch.build_parser().parse_args(command[2:])
    assert (command[1], arguments.host, arguments.port) == ("launch.py", "0.0.0.0", 7860)
    assert find("EXPOSE") == ["7860"] and json.loads(find("VOLUME")[0]) == ["/workspace"]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_service_keeps_its_workspace_and_takes_logins_from_a_file(
    name: str, compose: dict[str, Any]
) -> None:
    service = compose["services"][name]
    assert service["profiles"] == [name]
    assert service["volumes"] == ["workspace:/workspace"] and "workspace" in compose["volumes"]
    assert service["ports"] == ["${ADDRESS:-127.0.0.1}:${PORT:-7860}:7860"], "loopback unless it is changed"
    assert service["secrets"] == ["logins"] and "file" in compose["secrets"]["logins"]
    assert service["environment"]["ADAPTER_STUDIO_AUTH_FILE"] == "/run/secrets/logins"
    assert not re.search(r"password\s*:|ADAPTER_STUDIO_AUTH:", json.dumps(service))
    assert service["cap_drop"] == ["ALL"] and "privileged" not in service
    assert set(service["build"]["args"]) <= set(read_arguments())


def test_only_the_gpu_service_reserves_a_gpu(compose: dict[str, Any]) -> None:
    (device,) = compose["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert "deploy" not in compose["services"]["cpu"]
    assert compose["services"]["gpu"]["build"]["args"]["TORCH_INDEX"] == ""


def test_the_variables_of_the_container_are_those_that_launch_reads(compose: dict[str, Any]) -> None:
    text = (ROOT / "launch.py").read_text(encoding="utf-8")
    names = [*compose["services"]["cpu"]["environment"], *re.findall(r"ADAPTER_\w+", " ".join(find("ENV")))]
    assert len(names) == 3 and all(f'"{name}"' in text for name in names)
