"""The command of a child process that runs one function of ours.

`-I` keeps the working directory and the environment's Python settings out of the child, and with them the
packages of the user; the child gets the search path of this process instead.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_CODE = (
    "import importlib, json, sys; path, module, function, *rest = sys.argv[1:];"
    "sys.path[:] = json.loads(path); sys.argv[1:] = rest;"
    "getattr(importlib.import_module(module), function)()"
)


def build_child_command(module: str, function: str, *arguments: str) -> list[str]:
    """The command that calls a function without arguments in a process of its own.

    Args:
        module: dotted name of its module.
        function: its name.
        arguments: what it finds in `sys.argv` from 1 on.
    """
    path = json.dumps([*filter(None, sys.path), str(_ROOT)])
    return [sys.executable, "-I", "-c", _CODE, path, module, function, *arguments]
