"""Do exported files say what the studio says? Every form and precision, with its certificate.

    python -m benchmarks.export                             the embedded base, random adapters
    python -m benchmarks.export --base FOLDER               another base
    python -m benchmarks.export --workspace W --adapters A B    trained adapters; W is not changed
    python -m benchmarks.export --quick                     fewer prompts, and the exact forms only

One line for each export: size, seconds, agreement at the same prefix, free-running agreement, KL divergence
in nats a token, largest difference of logits. The runtimes are plain peft, plain transformers, and llama.cpp
through the package xllamacpp. With --json the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

RANK, SIZE = 8, 0.02  # of random adapters; SIZE is the standard deviation of their factors
WEIGHTS = (1.0, 0.7)
AGREEMENTS = {"peft": 0.99, "merged": 0.99, "gguf f16": 0.99, "bundle f16": 0.99}


def list_exports(adapters: Sequence[str], quick: bool) -> dict[str, dict[str, Any]]:
    """Label -> settings of an `ExportSpec`."""
    one = {adapters[0]: 1.0}
    mix = dict(zip(adapters, WEIGHTS, strict=False))
    found: dict[str, dict[str, Any]] = {
        "peft": {"weights": one, "form": "peft"},
        "peft mix": {"weights": mix, "form": "peft"},
        "merged f32": {"weights": one, "form": "merged", "precision": "f32"},
        "merged bf16": {"weights": one, "form": "merged", "precision": "bf16"},
        "merged mix f32": {"weights": mix, "form": "merged", "precision": "f32"},
        "gguf f16": {"weights": one, "form": "gguf", "quantization": "f16"},
        "bundle f16": {"weights": mix, "form": "bundle", "quantization": "f16"},
    }
    if not quick:
        for quantization in ("f32", "bf16", "q8_0", "q4_0", "q4_k_m"):
            found[f"gguf {quantization}"] = {"weights": one, "form": "gguf", "quantization": quantization}
        found["bundle q8_0"] = {"weights": mix, "form": "bundle", "quantization": "q8_0"}
    return found


def add_random_adapters(workspace: Path, base: str) -> list[str]:
    """Adds two adapters with random factors on attention and feed-forward; returns their ids."""
    import torch
    from safetensors.torch import save_file

    from core.model.base import load_base
    from core.model.families import family_of
    from core.store import adapters as store
    from core.store.workspace import Workspace

    loaded, ids = load_base(base, "none", "cpu"), []
    targets = family_of(loaded.model.config).targets
    layers = {n: m for n, m in loaded.model.named_modules() if n.rpartition(".")[2] in targets}
    for number, name in enumerate(("First", "Second")):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for module, layer in layers.items():
            outputs, inputs = layer.weight.shape
            for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                values = torch.randn(shape, generator=generator) * SIZE
                tensors[f"base_model.model.{module}.lora_{side}.weight"] = values
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK,
            "target_modules": sorted({m.rpartition(".")[2] for m in layers}),
        }  # fmt: skip
        about = {"kind": "task", "base": {"name": loaded.name, "fingerprint": loaded.fingerprint}}
        made = store.add(
            Workspace(workspace), name.lower(), name, lambda p, t=tensors: save_file(t, p), config, about
        )
        ids.append(made.id)
    return ids


def measure_exports(
    base: str, workspace: Path, adapters: Sequence[str], prompts: int, quick: bool
) -> dict[str, dict[str, Any]]:
    """Label -> figures of each export.

    Args:
        workspace: is filled with exports.
        adapters: ids or names of two adapters.
    """
    from core.engine import Engine
    from core.spec.export import ExportSpec

    figures: dict[str, dict[str, Any]] = {}
    with Engine(workspace, base=base, quantization="none") as engine:
        engine.bases.current(wait=True)
        ids = [engine.library.find_adapter(a) for a in adapters]
        for label, settings in list_exports(ids, quick).items():
            start = time.perf_counter()
            export_id = engine.exports.start(
                ExportSpec.from_json({**settings, "name": label, "prompts": prompts})
            )
            status = engine.exports.wait(export_id)
            made = engine.exports.get(export_id)
            found = made.certificate or {"status": status.state, "reason": status.problem}
            names = ("status", "reason", "agreement", "free_agreement", "kl", "difference", "positions")
            figures[label] = {name: found.get(name) for name in names}
            figures[label] |= {
                "megabytes": round(made.bytes / 1e6, 1), "seconds": round(time.perf_counter() - start, 1),
            }  # fmt: skip
            _print_line(label, figures[label])
            if made.is_complete:
                engine.exports.delete(export_id)
    return figures


def _print_line(label: str, found: dict[str, Any]) -> None:
    if found["agreement"] is None:
        print(f"{label:16} {found['status']}: {found['reason']}", flush=True)
        return
    difference = "" if found["difference"] is None else f"  logits {found['difference']:.1e}"
    print(
        f"{label:16} {found['megabytes']:8.1f} MB {found['seconds']:6.1f} s  {found['status']:8} "
        f"same token {found['agreement']:7.2%}  free {found['free_agreement']:7.2%}  "
        f"KL {found['kl']:.1e}{difference}",
        flush=True,
    )


def main() -> int:
    """Exports, checks, and compares with what must hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="embedded", help="the base, as the studio takes it")
    parser.add_argument("--workspace", type=Path, help="a workspace with trained adapters; it is copied")
    parser.add_argument("--adapters", nargs=2, metavar="ADAPTER", help="two of its adapters")
    parser.add_argument("--quick", action="store_true", help="6 prompts, and fewer forms")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "workspace"
        if args.workspace:
            shutil.copytree(args.workspace / "adapters", workspace / "adapters")
            if (args.workspace / "datasets").exists():
                shutil.copytree(args.workspace / "datasets", workspace / "datasets")
        adapters = args.adapters or add_random_adapters(workspace, args.base)
        figures = measure_exports(args.base, workspace, adapters, 6 if args.quick else 20, args.quick)
    met = all(
        (found["agreement"] or 0.0) >= limit
        for label, found in figures.items()
        for prefix, limit in AGREEMENTS.items()
        if label.startswith(prefix)
    )
    print("met" if met else "MISSED: an exact form agrees at fewer than 99 % of the positions")
    if args.json:
        print(json.dumps({"base": args.base, "met": met, **figures}))
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
