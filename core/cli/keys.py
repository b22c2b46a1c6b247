"""The terminal's verbs over API keys: `keys create`, `keys list` and `keys revoke`."""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

from core.cli.common import AddVerb, print_table
from core.spec.access import ROLES
from core.store.api_keys import ApiKey, ApiKeys
from core.store.workspace import Workspace


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `keys`."""
    help = "Create a key for a program. It is shown once."
    p = add(group, "create", create, help, needs_engine=False, needs_workspace=True)
    p.add_argument("name", help="Who or what uses it.")
    p.add_argument(
        "--role",
        choices=ROLES,
        default=ROLES[0],
        help="viewer: prompts, mixes, compare, vote; trainer: also datasets and runs; owner: everything. "
        f"Default: {ROLES[0]}.",
    )
    add(group, "list", list_keys, "List the keys, without their secrets.", needs_engine=False,
        needs_workspace=True)  # fmt: skip
    help = "Revoke a key; requests with it are refused at once."
    p = add(group, "revoke", revoke, help, needs_engine=False, needs_workspace=True)
    p.add_argument("key", help="Its name or id.")


def create(engine: Any, args: argparse.Namespace) -> Any:
    key, secret = ApiKeys(Workspace(args.workspace)).create(args.name, args.role)
    if not args.json:
        print(f"{key.name} ({key.role}): {secret}")
        print("Copy it now: it cannot be shown again.")
    return {**_describe(key), "key": secret}


def list_keys(engine: Any, args: argparse.Namespace) -> Any:
    keys = ApiKeys(Workspace(args.workspace)).list()
    if not args.json:
        if not keys:
            print("no keys")
        else:
            days = [time.strftime("%Y-%m-%d", time.localtime(k.created)) for k in keys]
            rows = [[k.id, k.name, k.role, day, k.used or "never"] for k, day in zip(keys, days, strict=True)]
            print_table([["id", "name", "role", "created", "last used"], *rows])
    return [_describe(key) for key in keys]


def revoke(engine: Any, args: argparse.Namespace) -> Any:
    key = ApiKeys(Workspace(args.workspace)).revoke(args.key)
    if not args.json:
        print(f"revoked: {key.name}")
    return _describe(key)


def _describe(key: ApiKey) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(key).items() if name != "digest"}
