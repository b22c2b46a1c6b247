"""Starts Adapter Studio: `python3 launch.py` for the page, `test` for the test suite, `demo` without a browser.

The first start makes `.venv` and installs the pinned requirements; where they are importable already
(a Hugging Face Space, an environment of one's own) nothing is installed. Knows arguments, the
environment and wiring; the work is in core/ and studio/.
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

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / ".requirements.sha256"
REQUIREMENTS = ROOT / "requirements.txt"
TEST_REQUIREMENTS = ROOT / "requirements-test.txt"
PYTHONS = ((3, 10), (3, 13))
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;]+)(?:\s*;\s*python_version\s*(<|>=)\s*\"([\d.]+)\")?")


def pins(file: Path) -> dict[str, str]:
    """Package -> version of a requirements file, for this Python."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := PIN.match(line.strip()):
            name, version, operator, python = match.groups()
            if operator:
                newer = sys.version_info[:2] >= tuple(int(n) for n in python.split("."))
                if newer != (operator == ">="):
                    continue
            found[name] = version
    return found


def importable(file: Path) -> bool:
    """Are all pinned packages of a file here, in their versions? A local suffix (+cpu, +cu130) is fine."""
    try:
        return all(importlib.metadata.version(n).partition("+")[0] == v for n, v in pins(file).items())
    except importlib.metadata.PackageNotFoundError:
        return False


def digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def prepare(files: list[Path]) -> Path:
    """Returns a Python that has the requirements of `files`, after installing them where needed."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamped = STAMP.read_text(encoding="utf-8").split() if STAMP.is_file() else []
    wanted = [digest(f) for f in files]
    if python.exists() and all(w in stamped for w in wanted):  # the usual start: nothing else is looked at
        return Path(sys.executable) if Path(sys.prefix) == VENV else python
    if all(importable(f) for f in files):
        return Path(sys.executable)
    low, high = PYTHONS
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
            "Installing failed; what pip says above tells why. Start launch.py again to go on where it stopped."
        )
    STAMP.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return python


def rerun(python: Path, arguments: list[str]) -> int:
    """Goes on in another Python, with the same terminal."""
    if os.name == "nt":
        return subprocess.run([str(python), *arguments]).returncode
    sys.stdout.flush()
    return os.execv(python, [str(python), *arguments])


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="launch.py",
        description="Adapter Studio: train LoRA adapters in a browser and compose them live.",
        epilog="`launch.py test` runs the test suite, `launch.py demo` the main job without a browser.",
    )
    p.add_argument(
        "--workspace",
        type=Path,
        default=Path(os.environ.get("ADAPTER_STUDIO_WORKSPACE", ROOT / "workspace")),
        help="Where everything is kept.",
    )
    p.add_argument(
        "--base",
        default=os.environ.get("ADAPTER_STUDIO_BASE", ""),
        help='"embedded", a local folder, or a Hub id. Without it: the one chosen last on the page, at first the embedded one.',
    )
    p.add_argument(
        "--quantization",
        choices=("auto", "nf4", "int8", "none"),
        default=os.environ.get("ADAPTER_STUDIO_QUANTIZATION", "auto"),
    )
    p.add_argument("--host", default="127.0.0.1", help="Another address than loopback needs --auth.")
    p.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
    p.add_argument(
        "--auth",
        default=os.environ.get("ADAPTER_STUDIO_AUTH", ""),
        metavar="NAME:PASSWORD",
        help="Ask for a login.",
    )
    p.add_argument(
        "--allowed-host",
        action="append",
        default=os.environ.get("ADAPTER_STUDIO_HOSTS", "").split(),
        metavar="NAME",
        help="A name or address by which others reach this machine; requests for any other are refused.",
    )
    p.add_argument("--no-browser", action="store_true", help="Do not open a browser window.")
    return p


def serve(arguments: list[str]) -> int:
    """The studio itself; runs where the requirements are importable."""
    import gc
    import logging

    from core.train.signals import exit_on_sigterm

    exit_on_sigterm()
    gc.disable()  # what is imported stays: walking it again and again costs a sixth of the start

    args = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpcore", "bitsandbytes", "datasets"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no request leaves the machine unasked
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    space = os.environ.get("SPACE_HOST", "") if os.environ.get("SPACE_ID") else ""

    from core.engine import Engine
    from core.errors import StudioError
    from studio.app import serve as serve_page

    gc.freeze()
    gc.enable()
    try:
        with Engine(args.workspace, args.base, args.quantization, load=False) as engine:
            serve_page(
                engine,
                host="0.0.0.0" if space else args.host,
                port=args.port,
                auth=tuple(args.auth.split(":", 1)) if ":" in args.auth else None,
                space_host=space,
                hosts=args.allowed_host,
                open_browser=not (args.no_browser or space),
            )
    except StudioError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def main() -> int:
    arguments = sys.argv[1:]
    verb = arguments[0] if arguments and arguments[0] in ("test", "demo") else "serve"
    files = [REQUIREMENTS, TEST_REQUIREMENTS] if verb == "test" else [REQUIREMENTS]
    if verb == "serve" and {"-h", "--help"} & set(arguments):
        parser().parse_args(arguments)
    os.chdir(ROOT)
    python = prepare(files)
    if verb == "test":
        whole = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]  # tests take one thread each
        return rerun(python, ["-m", "pytest", *(arguments[1:] or whole)])
    if verb == "demo":
        return rerun(python, ["-m", "core", "demo", *_demo_workspace(arguments[1:])])
    if python != Path(sys.executable):
        return rerun(python, [str(Path(__file__)), *arguments])
    return serve(arguments)


def _demo_workspace(arguments: list[str]) -> list[str]:
    """The demo works in a temporary folder, unless it is told where to keep what it makes."""
    if any(a.startswith("--workspace") for a in arguments):
        return arguments
    import tempfile

    return ["--workspace", tempfile.mkdtemp(prefix="adapter-studio-demo-"), *arguments]


if __name__ == "__main__":
    raise SystemExit(main())
