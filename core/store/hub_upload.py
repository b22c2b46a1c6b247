"""Uploads of exports to the Hugging Face Hub: private unless asked otherwise, all files in one commit.

The files are those that the record of an export names, with the sha256 that it has. Nothing else of the
folder leaves the machine, and a file that has changed since refuses the upload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.errors import AdapterError, SpecError, StorageError, StudioError
from core.store.base_models import HUB_ID
from core.store.exports import ExportedFile
from core.store.files import sha256_of

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."


def upload(
    folder: Path,
    files: Sequence[ExportedFile],
    repo: str,
    is_private: bool = True,
    title: str = "",
    report: Callable[[str], None] = lambda text: None,
) -> str:
    """Uploads the files of an export; returns the address of the commit.

    A repository that does not exist is created. One that exists keeps its visibility and its other files.

    Args:
        folder: with the files. repo: "owner/name".
        is_private: whether a new repository is private.
        title: of the commit.
        report: receives what is being done.

    Raises:
        SpecError: the name of the repository. AdapterError: no token, no right to write, offline, or a file
            that has changed. StorageError: a file cannot be read.
    """
    check_repository(repo)
    for file in files:
        report(f"Checking {file.name}")
        path = folder / file.name
        if not path.is_file() or sha256_of(path) != file.sha256:
            raise AdapterError(f"{file.name} is missing or has changed.", "Export it again.")
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    try:
        _check_token(api)
        report(f"Creating {repo}")
        api.create_repo(repo, private=is_private, exist_ok=True)
        operations = [CommitOperationAdd(file.name, str(folder / file.name)) for file in files]
        report(f"Uploading {len(files)} files to {repo}")
        made = api.create_commit(repo, operations, commit_message=title or "Export of Adapter Studio")
    except Exception as e:
        raise _convert_error(repo, e) from e
    return str(made.commit_url)


def check_repository(repo: str) -> None:
    """Checks the name of a repository.

    Raises:
        SpecError: it is not "owner/name", or the Hub allows no such name.
    """
    if not HUB_ID.fullmatch(repo):
        raise SpecError(
            f'A repository of the Hub is "owner/name", got {repo!r}.', "Enter your user name before the name."
        ).at("repo")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as e:
        raise SpecError(
            f"The Hub does not allow the name {repo!r}.",
            'Use at most 96 letters, digits, "-", "_" and "."; no "-" or "." at an end or twice in a row, '
            'and no ".git".',
        ).at("repo") from e


def _check_token(api: Any) -> None:
    """Checks that there is a token, because the Hub answers a request without one as one of a stranger.

    Raises:
        AdapterError: there is none, and the Hub may be reached.
    """
    from huggingface_hub import constants, get_token

    if not (api.token or get_token() or constants.is_offline_mode()):
        raise AdapterError("No token of the Hub is known.", LOG_IN)


def _convert_error(repo: str, error: Exception) -> StudioError:
    """Converts an error of an upload into the error that the user sees; it never holds the token."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, StudioError):
        return error
    if isinstance(error, OfflineModeIsEnabled):
        return AdapterError("HF_HUB_OFFLINE is set, so nothing can be uploaded.", "Unset it, and try again.")
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status in (401, 403):
        return AdapterError(f"The Hub does not let you write to {repo!r}.", LOG_IN)
    text = f"{type(error).__name__}: {error}".strip().split("\n")[0][:200]
    if isinstance(error, HfHubHTTPError):
        return AdapterError(
            f"The Hub refused the upload to {repo!r} ({text}).", "Try again later; the files stay here."
        )
    if isinstance(error, OSError) and error.filename:
        return StorageError(f"A file cannot be read: {error.strerror}.", "Check its permissions.")
    return AdapterError(
        f"The Hub could not be reached for {repo!r} ({text}).",
        "Check the network and try again; the files stay here, and can be uploaded with `hf upload`.",
    )
