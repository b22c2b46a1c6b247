"""launch.py: pinned requirements, reuse of an environment, supported Python versions, and the Space."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch

ROOT = Path(__file__).resolve().parents[1]


def test_t26_every_requirement_is_pinned() -> None:
    for file in (launch.REQUIREMENTS, launch.TEST_REQUIREMENTS):
        lines = [x for x in file.read_text().splitlines() if x and not x.startswith("#")]
        assert lines and all(launch.PIN.match(x) for x in lines)


def test_packages_in_their_pinned_versions_are_reused() -> None:
    assert launch.are_installed(launch.REQUIREMENTS)
    assert launch.prepare_python([launch.REQUIREMENTS]) == Path(sys.executable)


def test_a_missing_package_or_another_version_is_not_accepted(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    for text in ("no-such-package==1.0\n", "pytest==0.0.1\n"):
        file.write_text(text)
        assert not launch.are_installed(file)


def test_markers_choose_the_pin_of_this_python(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text('a==1; python_version >= "3.11"\na==2; python_version < "3.11"\nb==3\n')
    assert launch.read_pins(file) == {"a": "1" if sys.version_info >= (3, 11) else "2", "b": "3"}


def test_an_unsupported_python_is_refused_with_the_supported_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("no-such-package==1.0\n")
    monkeypatch.setattr(launch, "PYTHON_VERSIONS", ((3, 98), (3, 99)))
    with pytest.raises(
        SystemExit, match=r"Python 3\.\d+ is not supported: start launch.py with Python 3\.98 to 3\.99"
    ):
        launch.prepare_python([file])


def test_help_needs_no_installed_package() -> None:
    out = subprocess.run(
        [sys.executable, "-S", "launch.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "launch.py demo" in out and "--auth" in out


def test_the_repository_is_a_space() -> None:
    front = (ROOT / "README.md").read_text(encoding="utf-8").split("---")[1]
    fields = dict(re.findall(r"^(\w+): (.+)$", front, re.M))
    assert fields["sdk"] == "gradio" and fields["app_file"] == "launch.py" and fields["suggested_hardware"]
    assert fields["sdk_version"] == launch.read_pins(launch.REQUIREMENTS)["gradio"]
    assert len(fields["short_description"]) <= 60


def test_importing_the_studio_builds_no_editor_stubs() -> None:
    """Gradio's stubs take half of its import time; this fails when a new Gradio builds them elsewhere."""
    code = (
        "import ast; n = []; parse = ast.parse; ast.parse = lambda *a, **k: n.append(a) or parse(*a, **k); "
        "import studio, gradio; print(len(n), gradio.HTML)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(out[0]) < 10, out  # numpy parses a few; Gradio would parse over a hundred
    code = "import inspect, studio, gradio; print(inspect.getfile(gradio.HTML))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        .stdout.strip()
        .endswith("html.py")
    )


@pytest.mark.parametrize(
    ("screen", "wanted", "opened", "text"),
    [
        (":0", True, ["http://127.0.0.1:7860/"], "It was opened in your browser."),
        ("", True, [], "No browser was opened: open this address yourself."),
        (":0", False, [], "No browser was opened: open this address yourself."),
    ],
)
def test_the_address_is_printed_and_whether_a_browser_was_opened(
    screen: str,
    wanted: bool,
    opened: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    urls: list[str] = []
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("DISPLAY", screen)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("webbrowser.open", lambda url: not urls.append(url))
    launch.announce("http://127.0.0.1:7860/", wanted)
    printed = capsys.readouterr().out
    assert urls == opened
    assert "Adapter Studio runs at http://127.0.0.1:7860/\n" in printed and text in printed
    assert "The link signs" not in printed


def test_a_login_link_is_opened_and_printed_with_what_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    urls: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", lambda url: not urls.append(url))
    launch.announce("http://127.0.0.1:7860/?token=first", True)
    launch.announce_link("http://127.0.0.1:7860/?token=second")
    printed = capsys.readouterr().out
    assert urls == ["http://127.0.0.1:7860/?token=first"]
    assert "token=first\n" in printed and "The link signs one browser in, once." in printed
    assert printed.endswith("Another browser can use this link, once: http://127.0.0.1:7860/?token=second\n")
