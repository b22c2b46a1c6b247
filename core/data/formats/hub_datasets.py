"""Datasets of the Hugging Face Hub: their parquet, JSONL and CSV files, at a commit, without their code.

    owner/name ─ resolve ─> commit, files of a configuration and split ─ download ─> files to import

The configuration and the split follow from the README's metadata, else from the names of the files, as the
Hub's own library reads them. A dataset that only has a script is read from the parquet files that the Hub
makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from core.errors import DataError, DiskFull, StudioError
from core.store.files import FULL, ensure_space, sha256_of
from core.store.hub import download_part
from core.store.json_text import DEPTH_LIMIT, find_depth_excess

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
NAME = re.compile(r"[\w.,=+ -]{1,120}")  # of a configuration or a split
REVISION = re.compile(r"(?!.*\.\.)[\w.-][\w./-]{0,120}")
SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv", ".json", ".jsonl.gz", ".csv.gz", ".ndjson")
CONVERTED = "refs/convert/parquet"
FILE_LIMIT = 2000
TREE_LIMIT = 100_000  # files of a repository that are listed
TOTAL_LIMIT_BYTES = 8 << 30
README_LIMIT_BYTES = 1 << 20
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test", "testing": "test", "eval": "test",
          "evaluation": "test"}  # fmt: skip

Report = Callable[[int, int], None]  # bytes so far, bytes in all; what it raises ends the download


@dataclass(frozen=True)
class HubFiles:
    """Files of one configuration and split, at a commit.

    Attributes:
        id: "owner/name".
        config, split: their names.
        commit: the commit that the revision pointed to.
        files: path in the repository, bytes, and sha256 ("" if the Hub does not give it).
    """

    id: str
    config: str
    split: str
    commit: str
    files: tuple[tuple[str, int, str], ...]

    def describe(self) -> str:
        """The sentence for the notes of the dataset."""
        return (
            f"From the Hub: {self.id}, configuration {self.config}, split {self.split}, commit {self.commit}."
        )


Groups = dict[str, dict[str, list[str]]]  # configuration to split to paths


@dataclass(frozen=True)
class HubListing:
    """The configurations and splits of a dataset, at a commit.

    Attributes:
        id: "owner/name".
        commit: the commit that the revision pointed to.
        revision: what finds the same files again: the commit, or for files that the Hub has converted the
            revision as it was given.
        groups: configuration to split to paths.
        usual: name of the default configuration, which need not exist.
        sizes: path to bytes and sha256 ("" if the Hub does not give it).
    """

    id: str
    commit: str
    revision: str
    groups: Groups
    usual: str
    sizes: dict[str, tuple[int, str]]

    def find_config(self) -> str:
        """The default configuration, or the only one; "" if the user has to choose."""
        return _find_usual(list(self.groups), self.usual)

    def find_split(self, config: str) -> str:
        """The split "train" of a configuration, or the only one; "" if the user has to choose."""
        return _find_usual(list(self.groups.get(config, ())), "train")

    def choose(self, config: str = "", split: str = "") -> HubFiles:
        """The files of a configuration and split.

        Args:
            config: "" takes the default one, or the only one.
            split: "" takes "train", or the only one.

        Raises:
            DataError: there is none, a choice is needed, or the files are above a limit.
        """
        config = _choose(self.id, "configuration", config, list(self.groups), self.usual)
        split = _choose(self.id, "split", split, list(self.groups[config]), "train")
        files = sorted(self.groups[config][split])
        total = sum(self.sizes[f][0] for f in files)
        if len(files) > FILE_LIMIT or total > TOTAL_LIMIT_BYTES:
            raise DataError(
                f"{self.id}, {config}, {split} has {len(files):,} files of {total:,} bytes; at most "
                f"{FILE_LIMIT:,} files and {TOTAL_LIMIT_BYTES:,} bytes are downloaded.",
                "Choose a smaller configuration or split, or download some of its files by hand.",
            )
        return HubFiles(self.id, config, split, self.commit, tuple((f, *self.sizes[f]) for f in files))


def resolve(
    hub_id: str, config: str = "", split: str = "", revision: str = "", endpoint: str | None = None
) -> HubFiles:
    """Finds the files of a configuration and split, and the commit that they are at.

    Args:
        config, split: see `HubListing.choose`.
        hub_id, revision, endpoint: see `list_splits`.

    Raises:
        DataError: not an id, unknown, gated, no network, no readable file, or a choice is needed.
    """
    _check_names(hub_id, config, split, revision)
    return list_splits(hub_id, revision, endpoint=endpoint).choose(config, split)


def list_splits(hub_id: str, revision: str = "", endpoint: str | None = None) -> HubListing:
    """Lists the configurations and splits of a dataset.

    Args:
        hub_id: "owner/name".
        revision: branch, tag or commit; "" takes the main branch.
        endpoint: address of the Hub; None takes the one that huggingface_hub is set to.

    Raises:
        DataError: not an id, unknown, gated, no network, or no readable file.
    """
    _check_names(hub_id, "", "", revision)
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    try:
        info = api.dataset_info(hub_id, revision=revision or None)
        sizes = _list_files(api, hub_id, str(info.sha))
        commit = again = str(info.sha)
        groups, usual = _group_files(api, hub_id, commit, sizes)
        if not groups and not revision:
            commit, again = str(api.dataset_info(hub_id, revision=CONVERTED).sha), revision
            sizes = _list_files(api, hub_id, commit)
            groups = _group_by_folder(sizes)
    except StudioError:
        raise
    except Exception as e:
        raise convert_error(hub_id, revision, e) from e
    if not groups:
        raise _refuse_files(hub_id)
    return HubListing(hub_id, commit, again, groups, usual, sizes)


def download(
    found: HubFiles, folder: Path, report: Report | None = None, endpoint: str | None = None
) -> list[Path]:
    """Downloads the files into a folder, under names made of their numbers and their own names.

    Raises:
        DataError: the connection or a checksum failed. DiskFull: they do not fit.
    """
    from huggingface_hub import hf_hub_url

    total, done = sum(size for _, size, _ in found.files), 0
    ensure_space(folder, total)
    paths = []
    for number, (name, size, digest) in enumerate(found.files, start=1):
        target = folder / f"{number:04d}-{re.sub(r'[^A-Za-z0-9._-]', '_', PurePosixPath(name).name)[-80:]}"
        if target.suffix == ".ndjson":
            target = target.with_suffix(".jsonl")
        url = hf_hub_url(found.id, name, repo_type="dataset", revision=found.commit, endpoint=endpoint)
        try:
            for size_here in download_part(url, target, size):
                if report is not None:
                    report(done + size_here, total)
        except StudioError:
            raise
        except Exception as e:
            raise convert_error(found.id, found.commit, e) from e
        if target.stat().st_size != size or (digest and sha256_of(target) != digest):
            target.unlink()
            raise DataError("a file failed its checksum.", "Start the import again.", file=name)
        done += size
        paths.append(target)
    return paths


def _check_names(hub_id: str, config: str, split: str, revision: str) -> None:
    """Checks what the user typed, before it becomes part of an address."""
    for what, value, pattern, example in (
        ("The id of a dataset", hub_id, HUB_ID, '"owner/name", such as "rajpurkar/squad"'),
        ("A configuration", config, NAME, "letters, digits and . - _"),
        ("A split", split, NAME, "letters, digits and . - _"),
        ("A revision", revision, REVISION, "a branch, a tag or a commit"),
    ):
        if (value or what.startswith("The id")) and not pattern.fullmatch(value):
            raise DataError(f"{what} must be {example}, got {value[:120]!r}.", "Correct it.")


def _list_files(api: Any, hub_id: str, commit: str) -> dict[str, tuple[int, str]]:
    """Path to (bytes, sha256) of the files that can be read, and of the README."""
    files: dict[str, tuple[int, str]] = {}
    for count, entry in enumerate(
        api.list_repo_tree(hub_id, recursive=True, revision=commit, repo_type="dataset")
    ):
        if count > TREE_LIMIT:
            raise DataError(
                f"{hub_id} has more than {TREE_LIMIT:,} files.", "Download some of its files by hand."
            )
        path, size = str(entry.path), getattr(entry, "size", None)
        if size is None or not (path.lower().endswith(SUFFIXES) or path == "README.md"):
            continue
        digest = str(getattr(getattr(entry, "lfs", None), "sha256", "") or "")
        if size:
            files[path] = (int(size), digest if re.fullmatch(r"[0-9a-f]{64}", digest) else "")
    return files


def _group_files(api: Any, hub_id: str, commit: str, sizes: dict[str, tuple[int, str]]) -> tuple[Groups, str]:
    """Assigns the files to configurations and splits: as the README says, else by their names.

    Returns:
        The groups, and the name of the default configuration.
    """
    data = [f for f in sizes if f != "README.md"]
    if 0 < sizes.get("README.md", (0, ""))[0] <= README_LIMIT_BYTES:
        groups, usual = _group_by_readme(_read_readme(api, hub_id, commit), data)
        if groups:
            return groups, usual
    return _group_by_name([f for f in data if not _is_metadata(f)]), "default"


def _read_readme(api: Any, hub_id: str, commit: str) -> dict[str, Any]:
    """The metadata at the top of the README."""
    import yaml
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(hub_id, "README.md", repo_type="dataset", revision=commit, endpoint=api.endpoint)
    data = b""
    with get_session().stream("GET", url, headers=build_hf_headers(), follow_redirects=True) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_bytes(1 << 16):
            data += chunk
            if len(data) > README_LIMIT_BYTES:
                break
    found = re.match(r"---\s*\n(.*?)\n---", data.decode(errors="replace"), re.S)
    if not found or find_depth_excess(found[1], DEPTH_LIMIT) is not None:
        return {}
    try:
        metadata = yaml.load(found[1], getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 # a safe loader
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _group_by_readme(metadata: dict[str, Any], data: Sequence[str]) -> tuple[Groups, str]:
    configs, usual = metadata.get("configs"), "default"
    groups: Groups = {}
    for config in configs if isinstance(configs, list) else ():
        if not isinstance(config, dict) or "data_files" not in config:
            continue
        name, folder = str(config.get("config_name", "default")), str(config.get("data_dir") or "")
        entries = config["data_files"]
        if not isinstance(entries, list) or any(isinstance(e, str) for e in entries):
            entries = [{"split": "train", "path": entries}]
        for entry in entries:
            if not isinstance(entry, dict):
                continue
            paths = entry.get("path", [])
            for pattern in paths if isinstance(paths, list) else [paths]:
                matches = _compile_pattern(str(PurePosixPath(folder) / str(pattern))).fullmatch
                found = [f for f in data if matches(f)]
                groups.setdefault(name, {}).setdefault(str(entry.get("split", "train")), []).extend(found)
        usual = name if config.get("default") is True else usual
    filled = {n: {s: sorted(set(f)) for s, f in splits.items() if f} for n, splits in groups.items()}
    return {n: splits for n, splits in filled.items() if splits}, usual


def _compile_pattern(pattern: str) -> re.Pattern[str]:
    """The pattern of a path, as the Hub's library reads it: * stays inside a folder, ** does not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern[:1000])
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meanings.get(part, re.escape(part)) for part in parts))


def _is_metadata(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    return name.startswith((".", "dataset_info", "dataset_dict", "state.json", "config.json", "package"))


def _group_by_name(data: Sequence[str]) -> Groups:
    """One configuration of the files of the most frequent format, each in the split that its path names."""
    by_suffix: dict[str, list[str]] = {}
    for path in data:
        by_suffix.setdefault(next(s for s in SUFFIXES if path.lower().endswith(s)), []).append(path)
    if not by_suffix:
        return {}
    paths = max(by_suffix.values(), key=len)
    splits: dict[str, list[str]] = {}
    for path in paths:
        words = re.split(r"[^a-z]+", path.lower())
        splits.setdefault(next((SPLITS[w] for w in words if w in SPLITS), "train"), []).append(path)
    return {"default": splits}


def _group_by_folder(sizes: dict[str, tuple[int, str]]) -> Groups:
    """The files that the Hub converted: <configuration>/<split>/0000.parquet."""
    groups: Groups = {}
    for path in sizes:
        parts = PurePosixPath(path).parts
        if len(parts) == 3 and path.endswith(".parquet"):
            groups.setdefault(parts[0], {}).setdefault(parts[1].removeprefix("partial-"), []).append(path)
    return groups


def _find_usual(names: Sequence[str], usual: str) -> str:
    """The usual name if it is there, or the only one; "" if the user has to choose."""
    if usual in names:
        return usual
    return names[0] if len(names) == 1 else ""


def _refuse_files(hub_id: str) -> DataError:
    return DataError(
        f"{hub_id} has no file that can be read.",
        f"Read are {', '.join(SUFFIXES[:4])}. Code of a dataset is never run.",
    )


def _choose(hub_id: str, what: str, wanted: str, names: Sequence[str], usual: str) -> str:
    """Chooses a configuration or a split.

    Raises:
        DataError: there is none, the wanted one does not exist, or the user has to choose.
    """
    if not names:
        raise _refuse_files(hub_id)
    if not wanted and (found := _find_usual(names, usual)):
        return found
    if wanted in names:
        return wanted
    known = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
    if wanted:
        raise DataError(f"{hub_id} has no {what} {wanted!r}.", f"It has: {known}.")
    flag = "--config" if what == "configuration" else "--split"
    raise DataError(f"{hub_id} has several {what}s.", f"Choose one, in the terminal with {flag}: {known}.")


def convert_error(hub_id: str, revision: str, error: Exception) -> StudioError:
    """Converts an error of the Hub's library without its text, which may hold an address with a token."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OSError) and error.errno in FULL:
        return DiskFull(
            f"The disk is full: the download of {hub_id!r} stopped.", "Free some space and start again."
        )
    if isinstance(error, GatedRepoError):
        return DataError(
            f"{hub_id!r} is gated.",
            "Request access on its Hub page, log in with `hf auth login` or set HF_TOKEN, and start again.",
        )
    if isinstance(error, RevisionNotFoundError):
        if not revision:
            return DataError(
                f"{hub_id!r} has no parquet, JSONL or CSV files, and its code is never run.",
                "Choose another dataset, or download its files by hand.",
            )
        return DataError(f"{hub_id!r} has no revision {revision!r}.", "Check the branch, tag or commit.")
    if isinstance(error, (RepositoryNotFoundError, EntryNotFoundError)):
        return DataError(
            f"The Hub has no dataset {hub_id!r}, or it is private.",
            "Check the spelling. For a private dataset, log in with `hf auth login` or set HF_TOKEN.",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return DataError(
            f"{hub_id!r} is not on this machine, and HF_HUB_OFFLINE is set.",
            "Unset HF_HUB_OFFLINE, or import its files from this machine.",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HfHubHTTPError) and status:
        return DataError(f"The Hub refused the request for {hub_id!r} (status {status}).", "Try again later.")
    return DataError(
        f"The Hub could not be reached for {hub_id!r} ({type(error).__name__}).",
        "Check the network, or import the dataset's files from this machine.",
    )
