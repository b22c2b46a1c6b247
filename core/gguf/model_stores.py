"""GGUF files in the stores of Ollama and LM Studio: read only, and offered by the names that people know.

    <ollama>/manifests/<host>/<namespace>/<model>/<tag>     JSON with layers: mediaType, digest, size
    <ollama>/blobs/sha256-<64 hexadecimal digits>           the content of a layer
    <lm studio>/<publisher>/<repository>/<file>.gguf

A digest must be a sha256, and every file a regular file at its place in the store: links are not followed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import BaseModelError
from core.store.json_text import parse_object

HOST, LIBRARY, LATEST = "registry.ollama.ai", "library", "latest"
LAYER = "application/vnd.ollama.image."
MODEL, ADAPTER, PROJECTOR, TEMPLATE, PARAMS = (
    LAYER + kind for kind in ("model", "adapter", "projector", "template", "params")
)
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,127}")
MANIFEST_LIMIT, TEXT_LIMIT = 1 << 20, 1 << 20  # bytes
ENTRY_LIMIT = 2000  # manifests or files of a store
STOP_LIMIT = 64
PULL_AGAIN = "Pull the model again with Ollama."


@dataclass(frozen=True)
class ModelFolders:
    """Where other programs keep their models, and where downloads are kept.

    Attributes:
        ollama, lm_studio: the folders of their models, of which some may not exist.
        downloads: files of `core.store.known_bases`.
    """

    ollama: tuple[Path, ...] = ()
    lm_studio: tuple[Path, ...] = ()
    downloads: Path = field(default_factory=lambda: Path.home() / ".cache" / "adapter-studio")

    @staticmethod
    def find(environment: Mapping[str, str]) -> ModelFolders:
        """The usual folders of this user; OLLAMA_MODELS and XDG_CACHE_HOME count where they are set."""
        home = Path.home()
        own = environment.get("OLLAMA_MODELS", "")
        usual = (home / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models"))
        cache = environment.get("XDG_CACHE_HOME", "")
        return ModelFolders(
            (Path(own).expanduser(),) if own else usual,
            (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"),
            (Path(cache) if cache else home / ".cache") / "adapter-studio",
        )


@dataclass(frozen=True)
class StoredModel:
    """One model of a store.

    Attributes:
        name: the name that loads it: "qwen2.5:0.5b-instruct", or the path of a file.
        label: the name to show.
        store: "ollama" or "lmstudio".
        path: of the GGUF file.
        bytes: of the file.
        sha256: of the file, as the store states it, or "".
        why: why it cannot be used, or "".
        notes: what of the model is left out, a sentence each.
        texts: kind of layer ("template", "params") -> file that holds it.
    """

    name: str
    label: str
    store: str
    path: Path
    bytes: int = 0
    sha256: str = ""
    why: str = ""
    notes: tuple[str, ...] = ()
    texts: dict[str, Path] = field(default_factory=dict)


def list_models(folders: ModelFolders) -> list[StoredModel]:
    """The models of all stores, without repeats, by name."""
    found: dict[str, StoredModel] = {}
    for root in folders.ollama:
        for model in _list_ollama(root):
            found.setdefault(model.name, model)
    for root in folders.lm_studio:
        for model in _list_lm_studio(root):
            found.setdefault(model.name, model)
    return sorted(found.values(), key=lambda m: (m.store, m.label.lower()))


def find_model(folders: ModelFolders, name: str) -> StoredModel | None:
    """The model of Ollama that a name means; without a tag, its latest one. None where there is none."""
    wanted = {name, f"{name}:{LATEST}"}
    models = (m for root in folders.ollama for m in _list_ollama(root))
    return next((m for m in models if m.name in wanted), None)


def read_settings(model: StoredModel) -> tuple[str, list[str]]:
    """(the chat template of a model in Ollama's form, or ""; the texts that end an answer)

    Raises:
        BaseModelError: the files of the store are damaged.
    """
    template, stops = "", []
    try:
        if path := model.texts.get("template"):
            template = _read_file(path, TEXT_LIMIT).decode("utf-8", "replace")
        if path := model.texts.get("params"):
            given = parse_object(_read_file(path, TEXT_LIMIT)).get("stop", [])
            stops = [s for s in given if isinstance(s, str)] if isinstance(given, list) else []
    except (OSError, ValueError) as e:
        raise BaseModelError(f"The settings of {model.name!r} cannot be read: {e}.", PULL_AGAIN) from e
    return template, stops[:STOP_LIMIT]


# --- Ollama


def _list_ollama(root: Path) -> Iterator[StoredModel]:
    manifests = root / "manifests"
    for parts in _walk(manifests, 4):
        if all(NAME.fullmatch(part) for part in parts):
            yield _read_manifest(root, manifests.joinpath(*parts), _name_model(*parts))


def _name_model(host: str, namespace: str, model: str, tag: str) -> str:
    """The name that people type: without the usual host and namespace."""
    if host != HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == LIBRARY else f"{namespace}/{model}:{tag}"


def _read_manifest(root: Path, path: Path, name: str) -> StoredModel:
    try:
        layers = parse_object(_read_file(path, MANIFEST_LIMIT))["layers"]
        kinds = [(str(layer["mediaType"]), _find_blob(root, layer)) for layer in layers]
    except (OSError, ValueError, KeyError, TypeError) as e:
        why = f"Its manifest in Ollama's store is damaged ({type(e).__name__}: {e}). {PULL_AGAIN}"
        return StoredModel(name, name, "ollama", path, why=why)
    models = [found for kind, found in kinds if kind == MODEL]
    if len(models) != 1:
        what = "no file of a model" if not models else f"{len(models)} files, which cannot be joined"
        return StoredModel(name, name, "ollama", path, why=f"It has {what}.")
    digest, blob, size = models[0]
    notes = []
    if any(kind == ADAPTER for kind, _ in kinds):
        notes.append("Ollama adds an adapter to this model; it is left out, and the model is taken alone.")
    if any(kind == PROJECTOR for kind, _ in kinds):
        notes.append("The part that reads pictures is left out.")
    texts = {
        kind.removeprefix(LAYER): found[1]
        for kind, found in kinds
        if kind in (TEMPLATE, PARAMS) and not _explain_defect(found[1], found[2])
    }
    why = _explain_defect(blob, size)
    return StoredModel(name, name, "ollama", blob, size, digest, why, tuple(notes), texts)


def _find_blob(root: Path, layer: Mapping[str, Any]) -> tuple[str, Path, int]:
    """(digest, path, bytes) of a layer.

    Raises:
        ValueError: its digest is not a sha256, which could be the name of another file.
    """
    match = DIGEST.fullmatch(str(layer["digest"]))
    if match is None:
        raise ValueError(f"the digest {str(layer['digest'])[:80]!r} is not a sha256")
    return match[1], root / "blobs" / f"sha256-{match[1]}", int(layer.get("size", 0))


def _explain_defect(path: Path, size: int) -> str:
    """Why a blob cannot be read, or ""."""
    try:
        status = os.lstat(path)
    except OSError:
        return f"Its file is missing in Ollama's store. {PULL_AGAIN}"
    if not stat.S_ISREG(status.st_mode):
        return "Its file in Ollama's store is a link, which is not followed. Choose the file itself."
    if size and status.st_size != size:
        return f"Its file has {status.st_size:,} bytes and not {size:,}. {PULL_AGAIN}"
    return "" if os.access(path, os.R_OK) else "Its file may not be read by this user."


# --- LM Studio


def _list_lm_studio(root: Path) -> Iterator[StoredModel]:
    seen: set[str] = set()
    for parts in _walk(root, 3):
        file = parts[-1]
        if not file.lower().endswith(".gguf") or "mmproj" in file.lower():
            continue
        path, label = root.joinpath(*parts), "/".join(parts)
        if match := PART.search(file):
            label = label[: -len(match[0])]
            if label in seen:
                continue
            seen.add(label)
            why = f"It is split into {int(match[2])} files. Join them with `llama-gguf-split --merge`."
            yield StoredModel(str(path), label, "lmstudio", path, why=why)
            continue
        status = os.lstat(path)
        is_file = stat.S_ISREG(status.st_mode)
        why = "" if is_file else "It is a link, which is not followed. Choose the file itself."
        yield StoredModel(str(path), label, "lmstudio", path, status.st_size if is_file else 0, why=why)


# --- files


def _walk(root: Path, depth: int) -> list[tuple[str, ...]]:
    """The names that lead to every entry at a depth; folders that are links are left out."""
    found: list[tuple[str, ...]] = [()]
    for level in range(1, depth + 1):
        deeper: list[tuple[str, ...]] = []
        for parts in found:
            for entry in _scan(root.joinpath(*parts)):
                if entry.is_dir(follow_symlinks=False) == (level < depth):
                    deeper.append((*parts, entry.name))
        found = sorted(deeper)[:ENTRY_LIMIT]
    return found


def _scan(folder: Path) -> Sequence[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []


def _read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        OSError, ValueError
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError("it is not a file")
    with open(path, "rb") as f:
        content = f.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content
