"""Writes the reference pages from the code: the HTTP API, the terminal, and the settings.

python docs/reference.py            writes docs/reference/{api,terminal,settings}.md
python docs/reference.py --check    exit code 1 where a page differs from the code
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.cli.main import build_parser  # noqa: E402
from core.engine import Engine  # noqa: E402
from core.server.access import OpenAccess, Role  # noqa: E402
from core.server.app import make_app  # noqa: E402
from core.server.studio_api_document import build_document  # noqa: E402
from core.spec.mix import Mix, Sampling  # noqa: E402
from core.spec.settings import label_of  # noqa: E402
from core.spec.training import TrainSpec  # noqa: E402

FOLDER = ROOT / "docs" / "reference"
COMMON = ("help", "json", "workspace", "base", "quantization")  # arguments that are described once
NOTE = "Written by `python docs/reference.py`; do not edit.\n"


def write_api() -> str:
    """The routes, the role that each needs, and their fields."""
    with tempfile.TemporaryDirectory() as folder, Engine(folder, load=False) as engine:
        app = make_app(engine, OpenAccess())
        document, roles = build_document(app), dict(list_roles(app.routes))
    schemas = document["components"]["schemas"]
    lines = ["# HTTP API", "", NOTE, "Errors are problem JSON (RFC 9457).", ""]
    lines += ["| route | role | |", "|---|---|---|"]
    bodies: dict[str, str] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            role = roles.get((path, method.upper()), Role.NONE)
            name = f"{method.upper()} {path}"
            lines.append(
                f"| `{name}` | {'anyone' if role is Role.NONE else role.label} | {operation['summary']} |"
            )
            body = find_schema(operation.get("requestBody", {}))
            if body in schemas:
                bodies[name] = body
    for name, body in bodies.items():
        lines += ["", f"## {name}", "", *describe_fields(schemas[body])]
    return "\n".join(lines) + "\n"


def list_roles(routes: Any) -> Iterator[tuple[tuple[str, str], Role]]:
    """((path, method), role) of every route; those of a router that was included are inside of it."""
    for route in routes:
        inner = getattr(getattr(route, "original_router", None), "routes", ())
        yield from list_roles(inner)
        if dependant := getattr(route, "dependant", None):
            found = [d.call.role for d in dependant.dependencies if hasattr(d.call, "role")]
            for method in route.methods:
                yield (route.path_format, method), max(found, default=Role.NONE)


def find_schema(body: dict[str, Any]) -> str:
    """The name of the schema of a body, or ""."""
    for content in body.get("content", {}).values():
        schema = content.get("schema", {})
        for part in (schema, *schema.get("anyOf", ())):
            if "$ref" in part:
                return str(part["$ref"]).rpartition("/")[2]
    return ""


def describe_fields(schema: dict[str, Any]) -> list[str]:
    """A table of the fields of a body."""
    lines = ["| field | type | default | |", "|---|---|---|---|"]
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in schema.get("required", ()) else write_value(field.get("default"))
        text = str(field.get("description", "")).replace("\n", " ").replace("|", "\\|")
        lines.append(f"| `{name}` | {describe_type(field)} | {default} | {text} |")
    return lines


def describe_type(field: dict[str, Any]) -> str:
    """The type of a field in a word or two."""
    kinds = [part for part in field.get("anyOf", [field]) if part.get("type") != "null"]
    names = [str(p.get("type") or str(p.get("$ref", "any")).rpartition("/")[2]) for p in kinds]
    return " or ".join(dict.fromkeys(names)) or "any"


def write_terminal() -> str:
    """Every verb of `python -m core` with its arguments."""
    lines = [
        "# Terminal",
        "",
        NOTE,
        "Every verb takes `--help`; `--json` prints one JSON value as the last line. Verbs on a workspace",
        "take `--workspace`, and those that may load a base take `--base` and `--quantization`.",
    ]
    for words, parser in list_verbs(build_parser(), ("python -m core",)):
        lines += ["", f"## `{' '.join(words)}`", "", str(parser.description or ""), ""]
        arguments = [a for a in parser._actions if a.dest not in COMMON and a.help != argparse.SUPPRESS]
        if arguments:
            lines += ["| argument | default | |", "|---|---|---|"]
        for a in arguments:
            name = ", ".join(a.option_strings) or str(a.metavar or a.dest)
            text = str(a.help or "").replace("%%", "%").replace("|", "\\|").replace(str(ROOT), ".")
            default = "required" if a.required else write_value(a.default)
            lines.append(f"| `{name}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


def list_verbs(
    parser: argparse.ArgumentParser, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """The words and the parser of every verb that has no further verbs."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield words, parser
    for group in groups:
        for name, inner in group.choices.items():
            yield from list_verbs(inner, (*words, name))


def write_settings() -> str:
    """The settings of training, sampling and mixes: default, limits, and the sentence that a form shows."""
    lines = [
        "# Settings",
        "",
        NOTE,
        "The page, the terminal and the API show these sentences and check these limits.",
    ]
    for kind in (TrainSpec, Sampling, Mix):
        lines += ["", f"## {kind.__name__}", "", "| setting | default | allowed | |", "|---|---|---|---|"]
        for f in dataclasses.fields(kind):
            made = f.default_factory() if f.default is dataclasses.MISSING else f.default  # type: ignore[misc]
            default = write_value(made) if not isinstance(made, (dict, tuple, list)) or made else ""
            low, high, choices = (f.metadata[k] for k in ("low", "high", "choices"))
            allowed = ", ".join(map(str, choices)) if choices else ""
            if low is not None or high is not None:
                unit = " characters" if isinstance(made, str) else ""
                allowed = f"{write_number(low or 0)} to {write_number(high)}{unit}"
            lines.append(f"| `{f.name}` ({label_of(f)}) | {default} | {allowed} | {f.metadata['help']} |")
    return "\n".join(lines) + "\n"


def write_number(number: float) -> str:
    """A limit: whole numbers with separators of thousands."""
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def write_value(value: Any) -> str:
    """A default in a table."""
    if value is None or value == "" or value == []:
        return ""
    return f"`{value}`".replace(str(ROOT), ".")


PAGES = {"api.md": write_api, "terminal.md": write_terminal, "settings.md": write_settings}


def main() -> int:
    """Writes or checks the pages; returns the exit code."""
    parser = argparse.ArgumentParser(description="Reference pages from the code.")
    parser.add_argument(
        "--check", action="store_true", help="Write nothing; fail where a page is out of date."
    )
    args = parser.parse_args()
    outdated = []
    for name, write in PAGES.items():
        page, text = FOLDER / name, write()
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            outdated.append(name)
            if not args.check:
                page.parent.mkdir(exist_ok=True)
                page.write_text(text, encoding="utf-8")
    print(f"{'Out of date' if args.check else 'Written'}: {', '.join(outdated) or 'nothing'}")
    return 1 if args.check and outdated else 0


if __name__ == "__main__":
    raise SystemExit(main())
