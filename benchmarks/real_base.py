"""Speed on a real base, against llama.cpp, transformers with peft, and TRL.

    python -m benchmarks.real_base --base FOLDER --gguf FILE [--parts decoding training] [--quick] [--json]

The folder is a base as `core bases` converts it, the file the GGUF that it came from. One thread. The ratios
say how many times as fast ours is, except `first_token_over_llamacpp`, where less is better.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    """Runs the parts and prints their figures; with `--json`, the last line is one object."""
    parser = argparse.ArgumentParser(description="Speed on a real base.")
    parser.add_argument("--base", type=Path, required=True, help="The base as a folder.")
    parser.add_argument("--gguf", type=Path, required=True, help="The same base as a GGUF file.")
    parser.add_argument("--parts", nargs="+", choices=("decoding", "training"), default=["decoding"])
    parser.add_argument("--quick", action="store_true", help="Fewer rounds.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object as the last line.")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    import torch

    torch.set_num_threads(1)
    figures: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 1)}
    if "decoding" in args.parts:
        from benchmarks.real_base_decoding import measure_decoder

        figures["decoding"] = measure_decoder(args.base, args.gguf, rounds=4 if args.quick else 12)
    if "training" in args.parts:
        part = importlib.import_module("benchmarks.real_base_training")
        figures["training"] = part.measure_training(str(args.base), quick=args.quick)
    figures["load_after"] = round(os.getloadavg()[0], 1)
    if args.json:
        print(json.dumps(figures))
        return
    for name, part_figures in figures.items():
        if not isinstance(part_figures, dict):
            print(f"{name}: {part_figures}")
            continue
        print(f"{name}:")
        for key, value in part_figures.items():
            print(f"  {key}: {value}")


if __name__ == "__main__":
    main()
