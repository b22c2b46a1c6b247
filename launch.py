"""Starts Adapter Studio: the page, or the test suite (`launch.py test`), or the demo (`launch.py demo`).

The first start creates `.venv` and installs the pinned requirements. Where they are installed already (on a
Hugging Face Space, or in an environment of your own), nothing is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / ".requirements.sha256"
REQUIREMENTS = ROOT / "requirements.txt"
TEST_REQUIREMENTS = ROOT / "requirements-test.txt"
PYTHON_VERSIONS = ((3, 10), (3, 13))  # the oldest and the newest supported
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;]+)(?:\s*;\s*python_version\s*(<|>=)\s*\"([\d.]+)\")?")


def read_pins(file: Path) -> dict[str, str]:
    """Package to version, as a requirements file pins them for this Python."""
    pins = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := PIN.match(line.strip()):
            name, version, operator, python = match.groups()
            if operator:
                newer = sys.version_info[:2] >= tuple(int(n) for n in python.split("."))
                if newer != (operator == ">="):
                    continue
            pins[name] = version
    return pins


def are_installed(file: Path) -> bool:
    """Whether the packages of a file are installed in their pinned versions, ignoring a suffix like +cpu."""
    try:
        return all(importlib.metadata.version(n).partition("+")[0] == v for n, v in read_pins(file).items())
    except importlib.metadata.PackageNotFoundError:
        return False


def prepare_python(files: list[Path]) -> Path:
    """Installs the requirements of `files` if necessary, and returns the Python that has them."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamps = STAMP.read_text(encoding="utf-8").split() if STAMP.is_file() else []
    digests = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    if python.exists() and all(d in stamps for d in digests):  # the usual start, kept short
        return Path(sys.executable) if Path(sys.prefix) == VENV else python
    if all(are_installed(f) for f in files):
        return Path(sys.executable)
    low, high = PYTHON_VERSIONS
    if not low <= sys.version_info[:2] <= high:
        raise SystemExit(
            f"Python {sys.version_info.major}.{sys.version_info.minor} is not supported: "
            f"start launch.py with Python {low[0]}.{low[1]} to {high[0]}.{high[1]}."
        )
    print(
        f"First start: installing the pinned requirements into {VENV.name} (a few minutes, once).", flush=True
    )
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "on"]
    for file in files:
        install += ["-r", str(file)]
    if subprocess.run(install).returncode:
        raise SystemExit(
            "The installation failed; pip's messages above say why. Start launch.py again to continue it."
        )
    STAMP.write_text("\n".join(digests) + "\n", encoding="utf-8")
    return python


def run_python(python: Path, arguments: list[str]) -> int:
    """Runs another Python in place of this one, in the same terminal; returns its exit code."""
    if os.name == "nt":
        return subprocess.run([str(python), *arguments]).returncode
    sys.stdout.flush()
    return os.execv(python, [str(python), *arguments])


def build_parser() -> argparse.ArgumentParser:
    """The command line of the studio; `test` and `demo` are handled before it."""
    p = argparse.ArgumentParser(
        prog="launch.py",
        description="Adapter Studio: train LoRA adapters in a browser and mix them live.",
        epilog="`launch.py test` runs the test suite; `launch.py demo` runs the main job without a browser.",
    )
    p.add_argument(
        "--workspace",
        type=Path,
        default=Path(os.environ.get("ADAPTER_STUDIO_WORKSPACE", ROOT / "workspace")),
        help="Folder of datasets, runs, adapters and mixes (or ADAPTER_STUDIO_WORKSPACE).",
    )
    p.add_argument(
        "--base",
        default=os.environ.get("ADAPTER_STUDIO_BASE", ""),
        help='Base model: "embedded", smollm2-135m (downloaded once, 93 MB), a local folder, a GGUF file, a '
        "model of Ollama, or a Hub id. "
        "Default: the base chosen last on the page, at first the embedded one.",
    )
    p.add_argument(
        "--quantization",
        choices=("auto", "nf4", "int8", "none"),
        default=os.environ.get("ADAPTER_STUDIO_QUANTIZATION", "auto"),
        help="How the base is loaded: nf4 (4 bits), int8 (8 bits), none, or auto, which suits the device.",
    )
    p.add_argument(
        "--answers",
        choices=("auto", "fast", "exact"),
        default=os.environ.get("ADAPTER_STUDIO_ANSWERS", "auto"),
        help="Weights that answer in Mix and Compare on a CPU: exact (the base's own precision), fast (an "
        "8-bit copy), or auto: the copy where a short test shows that it pays. Training and measurements "
        "always use the base's own precision.",
    )
    p.add_argument(
        "--host",
        default="127.0.0.1",
        help="Address to listen on; any other than loopback requires --auth-file or --auth.",
    )
    p.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
    p.add_argument(
        "--no-token",
        action="store_true",
        help="On loopback: let everyone on this machine in, without the login link that the console shows.",
    )
    p.add_argument(
        "--auth",
        metavar="NAME:PASSWORD",
        help="Require a login (or ADAPTER_STUDIO_AUTH). Other users of this machine can see the options of a "
        "process, so prefer --auth-file or the variable.",
    )
    p.add_argument(
        "--auth-file",
        type=Path,
        default=os.environ.get("ADAPTER_STUDIO_AUTH_FILE") or None,
        metavar="FILE",
        help="Require a login of a file with lines NAME:PASSWORD (or ADAPTER_STUDIO_AUTH_FILE).",
    )
    p.add_argument(
        "--auth-role",
        choices=("viewer", "trainer", "owner"),
        default="owner",
        help="What these users may do: viewer (prompts, mixes, compare, vote), trainer (also datasets and "
        "runs) or owner (everything). Default: owner.",
    )
    p.add_argument(
        "--allowed-host",
        action="append",
        default=os.environ.get("ADAPTER_STUDIO_HOSTS", "").split(),
        metavar="NAME",
        help="A host name or address of this machine; requests for any other host are refused.",
    )
    p.add_argument("--no-browser", action="store_true", help="Do not open a browser window.")
    return p


def announce_link(url: str) -> None:
    """Prints the next login link, when one was used."""
    print(f"Signed in. Another browser can use this link, once: {url}", flush=True)


def announce(url: str, opens_browser: bool) -> None:
    """Prints the address of the studio, and opens it in a browser where there is a screen.

    Args:
        opens_browser: the user did not refuse it.
    """
    import webbrowser

    has_screen = sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    is_open = opens_browser and has_screen and webbrowser.open(url)
    how = "No browser was opened: open this address yourself."
    if is_open:
        how = "It was opened in your browser."
    once = "\nThe link signs one browser in, once." if "?token=" in url else ""
    print(f"\nAdapter Studio runs at {url}\n{how} Ctrl+C stops it.{once}\n", flush=True)


def open_gpu_calls() -> Any:
    """The calls in processes with a GPU, on a Space on ZeroGPU; None everywhere else.

    Raises:
        StudioError: the length of a slice is not allowed.
    """
    if not os.environ.get("SPACES_ZERO_GPU"):
        return None
    import importlib

    from core.engine.gpu_calls import GpuCalls, read_slice_seconds
    from core.space.zero_gpu import PACKAGE, SECONDS_VARIABLE, ZeroGpu, is_zero_gpu

    if not is_zero_gpu(os.environ["SPACES_ZERO_GPU"]):
        return None
    seconds = read_slice_seconds(os.environ.get(SECONDS_VARIABLE, ""))
    return GpuCalls(ZeroGpu(importlib.import_module(PACKAGE)), seconds)


def serve(arguments: list[str]) -> int:
    """Starts the studio in this Python, which must have the requirements; returns the exit code."""
    import gc
    import logging

    from core.store.redaction import protect_logs
    from core.train.signals import exit_on_sigterm

    exit_on_sigterm()
    gc.disable()  # imported modules stay; traversing them repeatedly would cost a sixth of the start

    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    protect_logs()
    for name in ("httpx", "httpx2", "httpcore", "bitsandbytes", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # the studio sends no request by itself
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # With a domain of its own, a Space has several names; the first is that of the Hub.
    names = os.environ.get("SPACE_HOST", "").replace(",", " ").split() if os.environ.get("SPACE_ID") else []
    space = names[0] if names else ""
    notices: tuple[str, ...] = ()
    if space and args.workspace == ROOT / "workspace":
        from core.space.storage import VOLUME, open_storage

        volume = Path(os.environ.get("ADAPTER_STUDIO_VOLUME") or VOLUME)
        storage = open_storage(volume, args.workspace, ROOT / "seed")
        args.workspace, notices = storage.workspace, storage.notices

    from core.engine import Engine
    from core.errors import StudioError
    from core.gguf.model_stores import ModelFolders
    from core.spec.access import Role
    from studio.app import serve as serve_page
    from studio.server.access import read_logins, read_visitor_role
    from studio.server.openid import OpenIdSettings
    from studio.uploads import keep_uploads

    gc.freeze()
    gc.enable()
    try:
        auth = args.auth if args.auth is not None else os.environ.get("ADAPTER_STUDIO_AUTH") or None
        logins = read_logins(auth, args.auth_file, Role[args.auth_role.upper()])
        visitors = read_visitor_role(os.environ.get("ADAPTER_STUDIO_VISITORS", ""))
        openid = OpenIdSettings.read(os.environ) if space else None
        folders = ModelFolders.find(os.environ)
        gpu = open_gpu_calls()
        if gpu:
            from core.space.zero_gpu import NOTICE

            notices += (NOTICE,)
        with (
            keep_uploads(os.environ.get("GRADIO_TEMP_DIR", "")) as uploads,
            Engine(
                args.workspace,
                args.base,
                args.quantization,
                "cpu" if gpu else "auto",
                load=False,
                folders=folders,
                answers="exact" if gpu else args.answers,
                gpu=gpu,
            ) as engine,
        ):
            os.environ["GRADIO_TEMP_DIR"] = uploads
            engine.notices += notices
            serve_page(
                engine,
                host="0.0.0.0" if space else args.host,
                port=args.port,
                logins=logins,
                link=not args.no_token,
                space_host=space,
                visitors=visitors,
                openid=openid,
                hosts=[*args.allowed_host, *names[1:]],
                announce=lambda url: announce(url, not (args.no_browser or space)),
                announce_link=announce_link,
            )
    except StudioError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def main() -> int:
    """Prepares a Python with the requirements, and runs the verb in it."""
    arguments = sys.argv[1:]
    verb = arguments[0] if arguments and arguments[0] in ("test", "demo") else "serve"
    files = [REQUIREMENTS, TEST_REQUIREMENTS] if verb == "test" else [REQUIREMENTS]
    if verb == "serve" and {"-h", "--help"} & set(arguments):
        build_parser().parse_args(arguments)
    os.chdir(ROOT)
    python = prepare_python(files)
    if verb == "test":
        # A test uses one thread, so that two fit on two cores.
        whole_suite = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--durations=60"]
        return run_python(python, ["-m", "pytest", *(arguments[1:] or whole_suite)])
    if verb == "demo":
        return run_python(python, ["-m", "core", "demo", *_add_demo_workspace(arguments[1:])])
    if python != Path(sys.executable):
        return run_python(python, [str(Path(__file__)), *arguments])
    return serve(arguments)


def _add_demo_workspace(arguments: list[str]) -> list[str]:
    """The arguments with a temporary workspace, unless they name one."""
    if any(a.startswith("--workspace") for a in arguments):
        return arguments
    import tempfile

    return ["--workspace", tempfile.mkdtemp(prefix="adapter-studio-demo-"), *arguments]


if __name__ == "__main__":
    raise SystemExit(main())
