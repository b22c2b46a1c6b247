"""Adapters made by real tools on the embedded base: imported, and compared with the tool's own answer.

    python -m benchmarks.foreign_adapters                  every tool, and the synthetic shapes of the tests
    python -m benchmarks.foreign_adapters --quick          the installed peft, and no other environment
    python -m benchmarks.foreign_adapters --only mlx-lm    one tool; --environments keeps what was installed

    environment of a tool ─ foreign_makers ─> adapters, tokens of its own ─ import ─ a mix ─> the same tokens?

Each tool gets an environment of its own, installed with pip; torch and what else it shares comes from the
studio's. A line per shape: "equal" (every greedy token is the tool's), "refused" with the reason, "other" (a
failure of the studio), "not made" (the version of the tool does not offer it), or "not installed".
With --json the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "assets" / "embedded-base"
MAKERS = Path(__file__).with_name("foreign_makers.py")
PROMPT = [4, 408, 275, 265, 599, 729, 352, 291, 37, 6, 5]
MAKING_SECONDS, INSTALL_SECONDS = 900, 900
# Findings for which an adapter is refused in a mix, and what the issue calls them.
REASONS = {
    "trained-copies": "trained embeddings, heads or tokens", "vocabulary": "another vocabulary",
    "bias": "biases", "layer-kind": "unknown layer types", "unknown-tensors": "unknown layer types",
    "kind": "not LoRA", "other-base": "another base", "damaged": "damaged", "variant": "not a plain product",
    "start": "a start that was subtracted from its base", "dora": "DoRA of q and k by torchtune",
}  # fmt: skip


@dataclass(frozen=True)
class Tool:
    """A tool and how its environment is made.

    Attributes:
        maker: a key of `foreign_makers.SHAPES`.
        packages: installed without their dependencies, which are listed, too; () is the studio's own.
    """

    maker: str
    packages: tuple[str, ...] = ()


def _old(peft: str, transformers: str, tokenizers: str, hub: str, accelerate: str) -> Tool:
    return Tool(
        "old peft",
        (
            f"peft=={peft}", f"transformers=={transformers}", f"tokenizers=={tokenizers}",
            f"huggingface_hub=={hub}", f"accelerate=={accelerate}",
        ),
    )  # fmt: skip


TOOLS: dict[str, Tool] = {
    "peft 0.4.0": _old("0.4.0", "4.31.0", "0.13.3", "0.16.4", "0.21.0"),
    "peft 0.6.2": _old("0.6.2", "4.35.2", "0.15.2", "0.19.4", "0.25.0"),
    "peft 0.10.0": _old("0.10.0", "4.39.3", "0.15.2", "0.22.2", "0.28.0"),
    "peft 0.13.2": _old("0.13.2", "4.45.2", "0.20.3", "0.25.2", "1.0.1"),
    "peft 0.17.1": _old("0.17.1", "4.56.2", "0.22.1", "0.35.3", "1.10.1"),
    "peft 0.21.2": Tool("peft"),
    "TRL": Tool("trl"),
    "mlx-lm": Tool("mlx-lm", ("mlx-lm==0.32.2", "mlx==0.32.4", "mlx-cpu==0.32.4", "sentencepiece")),
    "torchtune 0.6.1": Tool(
        "torchtune",
        (
            "torchtune==0.6.1", "torchao==0.10.0", "omegaconf==2.3.0", "antlr4-python3-runtime==4.9.3",
            "sentencepiece", "tiktoken", "blobfile", "kagglehub", "pycryptodomex",
        ),
    ),
    "LLaMA-Factory 0.9.5": Tool(
        "llama-factory",
        (
            "llamafactory==0.9.5", "peft==0.18.1", "transformers==5.6.0", "tokenizers==0.22.2", "trl==0.24.0",
            "fire", "termcolor",
            "tyro", "docstring-parser", "shtab", "typeguard", "av", "omegaconf==2.3.0", "einops",
            "antlr4-python3-runtime==4.9.3", "sentencepiece", "tiktoken", "hf-transfer", "matplotlib",
            "librosa", "torchdata", "modelscope",
        ),
    ),
}  # fmt: skip
QUICK = ("peft 0.21.2",)


@dataclass(frozen=True)
class Line:
    """One shape of one tool.

    Attributes:
        result: "equal", "refused", "other", "not made" or "not installed".
        detail: the repairs that were used, or why it was refused.
    """

    tool: str
    shape: str
    result: str
    detail: str = ""


def make_environment(tool: Tool, folder: Path) -> str:
    """The Python of a tool's environment; "" where it cannot be installed."""
    if not tool.packages:
        return sys.executable
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    own = Path(warnings.__file__).parent / "site-packages"
    studio = next((Path(p) for p in sys.path if p.endswith("site-packages")), own)
    (site / "zz_studio.pth").write_text(f"{studio}\n")  # after the environment's own packages
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
    if not (folder / "installed").exists():
        ran = subprocess.run(
            [*command, "--target", str(site), *tool.packages],
            capture_output=True, text=True, timeout=INSTALL_SECONDS,
        )  # fmt: skip
        if ran.returncode:
            print(ran.stderr.strip().splitlines()[-1][:300] if ran.stderr.strip() else "pip failed")
            return ""
        (folder / "installed").touch()
    return str(python)


def make_adapters(name: str, tool: Tool, environments: Path, target: Path) -> Iterator[dict[str, Any]]:
    """The results of `foreign_makers` for a tool; nothing where it cannot be installed or run."""
    python = make_environment(tool, environments / name.replace(" ", "-"))
    if not python:
        return
    target.mkdir(parents=True)
    command = [python, str(MAKERS), tool.maker, str(BASE), str(target)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=MAKING_SECONDS, env=clean)
    if ran.returncode:
        print(f"{name}: {ran.stderr.strip().splitlines()[-1][:300]}")
        return
    yield from json.loads((target / "results.json").read_text())


def compare(engine: Any, tool: str, made: dict[str, Any]) -> Line:
    """Imports an adapter, with the repairs that keep all of it, and compares the greedy tokens."""
    from core.errors import StudioError

    if "error" in made:
        return Line(tool, made["shape"], "not made", made["error"][:120])
    keep = ("use-alone", "convert-start", "subtract-start", "use-base", "rename-layers")
    try:
        found = engine.adapter_imports.examine(made["folder"], keep)
        blocking = found.open_findings
        if blocking:
            reason = REASONS.get(blocking[0].id, blocking[0].id)
            ways = ", ".join(r.id for r in blocking[0].repairs) or blocking[0].follows[:80]
            return Line(tool, made["shape"], "refused", f"{reason}; {ways}")
        adapter = engine.adapter_imports.add(made["folder"], made["shape"].replace(",", " "), keep)
        tokens = continue_in_a_mix(engine, adapter.id, len(made["tokens"]))
    except StudioError as e:
        return Line(tool, made["shape"], "other", e.what[:120])
    used = ", ".join(adapter.metadata["imported"]["repairs"])
    if tokens != made["tokens"]:
        return Line(tool, made["shape"], "other", f"{tokens[:8]} against {made['tokens'][:8]}")
    return Line(tool, made["shape"], "equal", used)


def continue_in_a_mix(engine: Any, adapter: str, count: int) -> list[int]:
    """Greedy tokens of the adapter at weight 1, beside a row of the base."""
    import torch

    from core.model.generate import inference_mode_for
    from core.spec.mix import Mix

    def work() -> list[int]:
        resident, mixes = engine.resident_base.get(), [Mix(), Mix(weights={adapter: 1.0})]
        resident.load_adapters(mixes)
        ids = list(PROMPT)
        with inference_mode_for(resident, resident.rows(mixes)):
            for _ in range(count):
                logits = resident.model(input_ids=torch.tensor([ids, ids]).clamp(max=10**6)).logits
                ids.append(int(logits[1, -1].argmax()))
        return ids[len(PROMPT) :]

    tokens: list[int] = engine.worker.call(work)
    return tokens


def compare_synthetic(folder: Path) -> Iterator[Line]:
    """The shapes that the tests build from the documented layouts of tools, on tiny bases."""
    import torch

    from core.engine import Engine
    from tests.conftest import build_tiny_llama
    from tests.core.importing import makers, test_shapes

    bases = {
        "llama": build_tiny_llama(folder / "llama", seed=1),
        "tied": makers.build_tiny_tied(folder / "tied"),
        "gpt2": makers.build_tiny_gpt2(folder / "gpt2"),
        "experts": makers.build_tiny_experts(folder / "experts"),
    }
    engines = {n: Engine(folder / f"ws-{n}", str(b), "none", "cpu") for n, b in bases.items()}
    for number, (name, (kind, make)) in enumerate(test_shapes.SHAPES.items()):
        engines[kind].bases.current(wait=True)
        made = make(folder / f"made-{number}", bases[kind])
        adapter = engines[kind].adapter_imports.add(str(made.source), f"Shape {number}", made.repairs)
        with torch.no_grad():
            tokens, _ = test_shapes.answer(lambda ids, m=made: m.model(input_ids=ids).logits)
        ours, _ = test_shapes.answer_in_a_mix(engines[kind], adapter.id)
        yield Line("synthetic", name, "equal" if ours == tokens else "other", ", ".join(made.repairs))
    for engine in engines.values():
        engine.close()


def run(names: list[str], environments: Path, with_synthetic: bool) -> Iterator[Line]:
    """One line per shape."""
    from core.engine import Engine

    with tempfile.TemporaryDirectory(prefix="foreign-") as scratch:
        folder = Path(scratch)
        with Engine(folder / "ws", str(BASE), "none", "cpu") as engine:
            engine.bases.current(wait=True)
            for name in names:
                results = list(
                    make_adapters(name, TOOLS[name], environments, folder / name.replace(" ", "-"))
                )
                if not results:
                    yield Line(name, "-", "not installed")
                for made in results:
                    yield compare(engine, name, made)
        if with_synthetic:
            yield from compare_synthetic(folder / "synthetic")


def main() -> int:
    parser = argparse.ArgumentParser(description="Import adapters of real tools; compare the answers.")
    parser.add_argument("--only", nargs="+", choices=[*TOOLS, "synthetic"], help="These tools.")
    parser.add_argument("--quick", action="store_true", help="The installed peft only.")
    parser.add_argument("--environments", type=Path, help="A folder that keeps the environments.")
    parser.add_argument("--json", action="store_true", help="Print one JSON value as the last line.")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    names = [n for n in args.only or (QUICK if args.quick else TOOLS) if n != "synthetic"]
    with_synthetic = "synthetic" in (args.only or ([] if args.quick else ["synthetic"]))
    begun, lines = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="environments-") as temporary:
        for line in run(names, args.environments or Path(temporary), with_synthetic):
            lines.append(line)
            print(f"{line.tool:<20} {line.shape:<46} {line.result:<14} {line.detail}", flush=True)
    counts = Counter(line.result for line in lines)
    made = counts["equal"] + counts["refused"] + counts["other"]
    print(
        f"{made} shapes were made: {counts['equal']} answer with every token of their own tool, "
        f"{counts['refused']} are refused, {counts['other']} fail; {time.monotonic() - begun:.0f} s"
    )
    if args.json:
        print(json.dumps({"lines": [asdict(line) for line in lines], "counts": dict(counts)}))
    return 1 if counts["other"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
