"""The terminal's verbs for adapters of other tools: `adapters add` and `adapters prove`."""

from __future__ import annotations

import argparse
from typing import Any

from core.cli.common import AddVerb
from core.engine import Engine
from core.engine.adapter_imports import KINDS
from core.errors import StudioError

MARKS = {"blocks": "!", "warns": "?", "notes": "-"}
NUMBERS_SHOWN = 6  # different ranks or scalings


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the verbs to the group `adapters`."""
    p = add(
        group,
        "add",
        add_adapter,
        "Import an adapter that another tool made: PEFT, mlx-lm, or a LoRA as GGUF.",
        needs_model=True,
    )
    p.add_argument(
        "source", help="A folder, a zip file, a file of weights, or a Hub id, which may end in @REVISION."
    )
    p.add_argument("--name", default="", help="Default: the name of the source.")
    p.add_argument("--kind", choices=KINDS, default=KINDS[0], help="task for answers, domain for text.")
    p.add_argument(
        "--repair",
        action="append",
        default=[],
        metavar="ID",
        help="Answer a finding with one of the repairs that it names. May be given several times.",
    )
    p.add_argument("--check", action="store_true", help="Show what would be imported; nothing is stored.")
    p.add_argument("--line", default="", help="A question to answer with the base and with the adapter.")
    p = add(
        group,
        "prove",
        prove_adapter,
        "Answer one line with the base and with an adapter, and compare.",
        needs_model=True,
    )
    p.add_argument("adapter", help="An id or a name.")
    p.add_argument("line", help="A question that the adapter was trained for.")
    p.add_argument("--text", action="store_true", help="Continue the line as a text, without a template.")


def add_adapter(engine: Engine, args: argparse.Namespace) -> Any:
    engine.resident_base.wait()
    preflight = engine.adapter_imports.examine(args.source, args.repair)
    _print_preflight(preflight)
    if args.check:
        return {"preflight": preflight, "can_import": preflight.can_import}
    adapter = engine.adapter_imports.add(args.source, args.name, args.repair, args.kind)
    print(f"added {adapter.id}: {adapter.name}, rank {adapter.rank} on {adapter.base}")
    proof = None
    if args.line:
        try:
            proof = engine.adapter_imports.prove(adapter.id, args.line)
            _print_proof(proof)
        except StudioError as e:  # the adapter is in the library, whatever the line
            print(f"not compared: {e}")
    return {"added": adapter.id, "preflight": preflight, "proof": proof}


def prove_adapter(engine: Engine, args: argparse.Namespace) -> Any:
    engine.resident_base.wait()
    adapter_id = engine.library.find_adapter(args.adapter)
    proof = engine.adapter_imports.prove(adapter_id, args.line, chat=not args.text)
    _print_proof(proof)
    return proof


def _print_preflight(preflight: Any) -> None:
    ranks = ", ".join(str(r) for r in preflight.ranks[:NUMBERS_SHOWN])
    scalings = ", ".join(f"{s:g}" for s in preflight.scalings[:NUMBERS_SHOWN])
    print(f"{preflight.source}: {preflight.tool}, {preflight.form}")
    claimed = preflight.claimed_base or "not named"
    print(f"base: {preflight.base}; the adapter's own: {claimed}")
    print(
        f"{preflight.parameters:,} parameters in {preflight.modules} layers of {preflight.layers} blocks, "
        f"rank {ranks}, scaling {scalings}"
    )
    print(f"layers: {', '.join(preflight.targets)}")
    if preflight.properties:
        print(f"properties: {', '.join(preflight.properties)}")
    for finding in preflight.findings:
        print(f"{MARKS[finding.level]} {finding.what} {finding.follows}".rstrip())
        for repair in finding.repairs:
            chosen = " (chosen)" if repair.id == finding.chosen else ""
            print(f"    --repair {repair.id}: {repair.label}. {repair.effect}{chosen}")


def _print_proof(proof: Any) -> None:
    print(f"line:    {proof.line}")
    print(f"base:    {proof.base_text}")
    print(f"adapter: {proof.adapter_text}")
    print(proof.verdict)
    for form in proof.forms:
        mark = "*" if form.is_preferred else " "
        print(f"{mark} {form.form}: {form.divergence:.3g} nats a token: {form.text}")
