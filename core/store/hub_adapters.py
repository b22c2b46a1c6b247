"""Downloads of adapters from the Hugging Face Hub, into a folder of the studio.

Only the configuration, the weights and a few texts of an adapter are downloaded: never a base that lies in
the same repository, other checkpoints, code or pickles but `adapter_model.bin`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from core.errors import AdapterError, StorageError, StudioError
from core.store.files import ensure_space
from core.store.hub import convert_error

FILE_LIMIT = 64
OTHER = "Check the id, or download the folder and enter its path."


def download(name: str, revision: str, folder: Path, is_chosen: Callable[[str], bool]) -> Path:
    """Downloads an adapter.

    Args:
        name: a Hub id. revision: a branch, tag or commit; "" is the main branch.
        folder: receives the files, in a folder of their own.
        is_chosen: whether a file of this name in the repository can belong to an adapter.

    Returns:
        the folder with the files.

    Raises:
        AdapterError: unknown, gated or no adapter, or no connection. DiskFull
    """
    from huggingface_hub import HfApi, hf_hub_download

    target = folder / name.replace("/", "--")
    try:
        info = HfApi().model_info(name, revision=revision or None, files_metadata=True)
        sizes = {s.rfilename: int(s.size or 0) for s in info.siblings or ()}
        chosen = _leave_out_other_weights([f for f in sizes if is_chosen(f)])
        if not chosen or len(chosen) > FILE_LIMIT:
            what = "has no adapter" if not chosen else f"has {len(chosen)} files of adapters"
            raise AdapterError(f"{name!r} on the Hub {what}.", OTHER)
        ensure_space(target, sum(sizes[f] for f in chosen))
        for file in chosen:
            hf_hub_download(name, file, revision=str(info.sha), local_dir=target)
    except AdapterError:
        raise
    except Exception as e:
        error: StudioError = convert_error(name, e)
        raise (error if isinstance(error, StorageError) else AdapterError(error.what, error.fix)) from e
    return target


def _leave_out_other_weights(files: list[str]) -> list[str]:
    """Leaves out pickles and other weights in a folder that has the usual safetensors file."""
    folders = {f.rpartition("/")[0] for f in files if f.rpartition("/")[2] == "adapter_model.safetensors"}
    weights = (".bin", ".safetensors", ".gguf")
    return [
        f
        for f in files
        if f.rpartition("/")[0] not in folders
        or not f.endswith(weights)
        or f.rpartition("/")[2] == "adapter_model.safetensors"
    ]
