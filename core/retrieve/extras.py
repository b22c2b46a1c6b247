"""The optional packages of retrieval, and their installation with pip in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from core.data.child_process import Parent, serve
from core.errors import NotFound, StudioError
from core.retrieve.encoders import WORDLLAMA, is_installed
from core.retrieve.vectors import FAISS

INSTALL_SECONDS = 900.0
OUTPUT_LIMIT = 600  # characters of pip's last lines in an error


@dataclass(frozen=True)
class Extra:
    """An optional package.

    Attributes:
        name: of the module.
        package: what pip installs, pinned.
        about: what it is for, one or two sentences.
        is_installed: whether it can be imported now.
    """

    name: str
    package: str
    about: str
    is_installed: bool = False


def list_extras() -> list[Extra]:
    """All optional packages."""
    return [
        Extra(
            WORDLLAMA,
            "wordllama==0.4.0.post1",
            "Finds passages that say the same in other words: static embeddings, 16 MB, nothing else is "
            "downloaded. Its weights were trained from the token embeddings of Llama 2, whose licence is "
            "Meta's; the package itself is under the MIT licence.",
            is_installed(WORDLLAMA),
        ),
        Extra(
            FAISS,
            "faiss-cpu==1.15.1",
            "Searches the embeddings of more than a million chunks.",
            is_installed(FAISS),
        ),
    ]


def find_extra(name: str) -> Extra:
    """The extra of a name.

    Raises:
        NotFound
    """
    extras = list_extras()
    for extra in extras:
        if extra.name == name:
            return extra
    raise NotFound(f"No extra is called {name!r}.", f"The extras are: {', '.join(e.name for e in extras)}.")


def run() -> None:
    """The entrance of the child."""
    serve(_install)


def _install(extra: Extra, parent: Parent) -> str:
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", extra.package]
    by_hand = f"Install it in the terminal with `pip install {extra.package}`."
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise StudioError(f"{extra.package} could not be installed: {e}.", by_hand) from e
    if done.returncode:
        reason = (done.stderr or done.stdout).strip()[-OUTPUT_LIMIT:]
        raise StudioError(f"{extra.package} could not be installed: {reason}", by_hand)
    return extra.package
