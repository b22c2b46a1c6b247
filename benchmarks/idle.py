"""Start and idle memory of the studio, beside a bare script that loads the same base and serves a page.

    python -m benchmarks.idle --base FOLDER            three starts of each side, the best one counts
    python -m benchmarks.idle --base FOLDER --quick    one start of each side

The studio is `launch.py`, with the options that a user gets without any. A request loads the base, as the
first visit of the page does. Seconds are wall time from the start of the process, with files in the page
cache. Memory is that of the process (proportional set size) once it has been idle for two seconds, so after
the base is loaded and the 8-bit weights are prepared. The bare script imports gradio and transformers, loads
the base (in float32, as the studio does on a CPU, and in the type of its file) and serves a page of one text
field. Needs Linux. With --json, the last line is one JSON object of named figures.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("studio", "studio_exact", "bare_float32", "bare_own_type")
TARGETS = {"studio_idle_mib": 1000.0, "studio_loaded_seconds": 8.0}
IDLE_SECONDS = 2.0  # an interval with almost no processor time
IDLE_SHARE = 0.15  # Gradio itself uses a few hundredths
PATIENCE = 180.0  # seconds for a start
LOADED = "is loaded"  # what both sides write to their log


@dataclass(frozen=True)
class Start:
    """One start of one side.

    Attributes:
        served, loaded: seconds until the page answers, and until it answers and the base is loaded.
        cpu: processor seconds of the process until it is idle.
        idle, peak: bytes, once it is idle, and at most until then.
    """

    served: float
    loaded: float
    cpu: float
    idle: int
    peak: int


def serve_bare(base: str, dtype: str, port: int) -> None:
    """The bare script: a page of one text field, and the base in memory."""
    import gradio as gr
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32 if dtype == "float32" else "auto", local_files_only=True
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)

    def answer(prompt: str) -> str:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        return str(tokenizer.decode(model.generate(ids, max_new_tokens=32)[0]))

    print(f"The base {LOADED}", flush=True)
    with gr.Blocks(analytics_enabled=False) as page:
        field = gr.Textbox(label="Prompt")
        field.submit(answer, field, field)
    page.launch(server_port=port, ssr_mode=False, quiet=True)


def measure_start(side: str, base: str, folder: Path) -> Start:
    """Starts one side, waits until it is idle, and ends it.

    Args:
        side: one of SIDES.
        folder: holds the workspace, which all starts of the studio share, and the log.
    """
    port, log = find_free_port(), folder / f"{side}.log"
    command = [sys.executable, "-m", "benchmarks.idle", "--base", base, "--serve-bare", side[5:]]
    if side.startswith("studio"):
        answers = ["--answers", "exact"] if side == "studio_exact" else []
        command = [sys.executable, "launch.py", "--base", base, "--workspace", str(folder / "workspace")]
        command += ["--no-browser", "--no-token", *answers]
    begin = time.monotonic()
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, stdout=out, stderr=out)
    try:
        served = wait_for_page(process, port, begin, log)
        if side.startswith("studio"):
            request_base(port)
        while LOADED not in log.read_text(encoding="utf-8"):
            check_alive(process, begin, log)
            time.sleep(0.02)
        loaded = time.monotonic() - begin
        cpu = wait_until_idle(process, begin, log)
        return Start(served, max(served, loaded), cpu, *read_memory(process.pid))
    finally:
        process.terminate()
        process.wait(60)


def find_free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def check_alive(process: subprocess.Popen[bytes], begin: float, log: Path) -> None:
    """Ends the benchmark where a side has ended, or takes too long."""
    if process.poll() is not None or time.monotonic() - begin > PATIENCE:
        raise SystemExit(f"The start failed:\n{log.read_text(encoding='utf-8')[-2000:]}")


def wait_for_page(process: subprocess.Popen[bytes], port: int, begin: float, log: Path) -> float:
    """Seconds from the start until the page answers."""
    while True:
        check_alive(process, begin, log)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                if answer.status == 200:
                    return time.monotonic() - begin
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)


def request_base(port: int) -> None:
    """Polls the studio once, as its page does when it appears; this loads the base."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=30) as answer:
        components = json.load(answer)["components"]
    guide = next(c["id"] for c in components if c.get("props", {}).get("elem_id") == "guide")
    body = {"data": {}, "component_id": guide, "fn_name": "poll", "session_hash": "idle"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/gradio_api/component_server",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def wait_until_idle(process: subprocess.Popen[bytes], begin: float, log: Path) -> float:
    """Waits until a process uses almost no processor time; returns its processor seconds."""
    before = -1.0
    while True:
        check_alive(process, begin, log)
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if cpu - before < IDLE_SHARE * IDLE_SECONDS:
            return cpu
        before = cpu
        time.sleep(IDLE_SECONDS)


def read_memory(pid: int) -> tuple[int, int]:
    """Proportional set size of a process, and the peak of its resident set, in bytes."""
    found = {}
    for name in ("smaps_rollup", "status"):
        for line in Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if value.strip().endswith("kB"):
                found.setdefault(key, int(value.split()[0]) * 1024)
    return found["Pss"], found["VmHWM"]


def measure_idle(base: str, turns: int = 3, sides: tuple[str, ...] = SIDES) -> dict[str, float]:
    """Starts all sides in turns.

    Args:
        base: a folder, or another base that both sides can load.
        turns: starts of each side; the first one of the studio, which probes the 8-bit weights, is extra.

    Returns:
        Seconds and MiB of each side, the best of its starts, and the ratios of the studio to the bare script.
    """
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        measure_start(sides[0], base, Path(folder))
        starts: dict[str, list[Start]] = {side: [] for side in sides}
        for _ in range(turns):
            for side in sides:
                starts[side].append(measure_start(side, base, Path(folder)))
    for side, measured in starts.items():
        figures[f"{side}_served_seconds"] = round(min(s.served for s in measured), 2)
        figures[f"{side}_loaded_seconds"] = round(min(s.loaded for s in measured), 2)
        figures[f"{side}_cpu_seconds"] = round(min(s.cpu for s in measured), 2)
        figures[f"{side}_idle_mib"] = round(min(s.idle for s in measured) / 2**20)
        figures[f"{side}_peak_mib"] = round(min(s.peak for s in measured) / 2**20)
    for name in ("loaded_seconds", "idle_mib"):
        for bare in ("bare_float32", "bare_own_type"):
            if {"studio", bare} <= set(sides):
                figures[f"{name}_over_{bare}"] = round(
                    figures[f"studio_{name}"] / figures[f"{bare}_{name}"], 2
                )
    figures["load"] = round(os.getloadavg()[0], 1)
    return figures


def main() -> int:
    """Measures, and compares the figures with the targets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="embedded", help="the base: embedded, or a folder")
    parser.add_argument("--quick", action="store_true", help="one start of each side")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="sides to start")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    parser.add_argument("--serve-bare", default="", metavar="TYPE", help="be the bare script")
    parser.add_argument("--port", type=int, default=0, help="of the bare script")
    args = parser.parse_args()
    if args.serve_bare:
        from core.store.base_models import locate

        serve_bare(locate(args.base)[0], args.serve_bare, args.port)
        return 0
    figures = measure_idle(args.base, 1 if args.quick else 3, tuple(args.sides))
    for name, value in figures.items():
        limit = TARGETS.get(name)
        verdict = ""
        if limit is not None:
            verdict = f"({'met' if value <= limit else 'MISSED'}: target <= {limit:g})"
        print(f"  {name:36s} {value:10.4g}  {verdict}")
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
