"""The first rows of a dataset of the Hub, without its download: those of the first file.

    HubFiles ─ range requests ─> the first bytes ─ readers ─> at most HEAD_ROWS rows ─> head.jsonl

A line or a row group that the first bytes cut off is not read. `datasets.preview` reads head.jsonl.
"""

from __future__ import annotations

import io
import itertools
import json
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from core.data.formats.hub_datasets import HubFiles, convert_error
from core.data.formats.parquet import UnreadCell, read_parquet
from core.data.formats.read_log import ReadLog
from core.data.formats.readers import RawRow, Source, read_source_rows
from core.errors import DataError, StudioError
from core.store.hub import PARTIAL_CONTENT

HEAD_ROWS = 300
HEAD_BYTES = 1 << 20  # of a text file
WHOLE_BYTES = 8 << 20  # a .json file up to this size is read whole, a longer one not at all
PARQUET_BYTES = 128 << 20  # that are fetched of a parquet file
READ_BYTES = 1 << 20  # of one request for a parquet file


def read_head(found: HubFiles, folder: Path, endpoint: str | None = None) -> Path:
    """Writes the first rows of the first file as head.jsonl.

    Args:
        found: the files of a configuration and split.
        folder: gets the file.
        endpoint: address of the Hub; None takes the one that huggingface_hub is set to.

    Returns:
        The path of the file.

    Raises:
        DataError: the connection failed, or the first rows cannot be read by themselves.
    """
    name, size, _ = found.files[0]
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(found.id, name, repo_type="dataset", revision=found.commit, endpoint=endpoint)
    remote = RemoteFile(url, size, PARQUET_BYTES)
    try:
        rows = list(itertools.islice(_read_first_rows(remote, PurePosixPath(name).name), HEAD_ROWS))
    except StudioError:
        raise
    except Exception as e:
        raise convert_error(found.id, found.commit, e) from e
    if not rows:
        raise DataError("the file is empty: it has no rows.", "Choose another split.", file=name)
    target = folder / "head.jsonl"
    with open(target, "w", encoding="utf-8") as f:
        for row in rows:
            cells = {column: cell for column, cell in row.items() if not isinstance(cell, UnreadCell)}
            f.write(json.dumps(cells, ensure_ascii=False, default=str) + "\n")
    return target


def _read_first_rows(remote: RemoteFile, name: str) -> Iterator[dict[str, Any]]:
    """The rows of the beginning of a file; the last one may be cut off, and is then left out."""
    if name.lower().endswith(".parquet"):
        yield from read_parquet(io.BufferedReader(remote, READ_BYTES), name, is_limited=False)
        return
    is_packed = name.lower().endswith(".gz")
    name = name[: -len(".gz")] if is_packed else name
    name = name[: -len(".ndjson")] + ".jsonl" if name.lower().endswith(".ndjson") else name
    needs_all = name.lower().endswith(".json")
    if needs_all and remote.size > WHOLE_BYTES:
        raise DataError(
            f"the first rows of a .json file of {remote.size:,} bytes cannot be read by themselves.",
            "Import it without a preview, or choose another split.",
            file=name,
        )
    limit = WHOLE_BYTES if needs_all else HEAD_BYTES
    data = remote.read(min(limit, remote.size))
    is_whole = len(data) == remote.size
    if is_packed:
        unpack = zlib.decompressobj(wbits=31)
        data = unpack.decompress(data, limit)
        is_whole = is_whole and unpack.eof
    if not is_whole:
        data = data[: data.rfind(b"\n") + 1]
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield from _read_lines(Source(Path(name), name, inflated=file), is_whole)


def _read_lines(source: Source, is_whole: bool) -> Iterator[dict[str, Any]]:
    """The rows of a text file; where it is cut off, an error after the first row ends them."""
    rows: Iterator[RawRow] = read_source_rows([source], "utf-8", ReadLog())
    has_rows = False
    while True:
        try:
            row = next(rows, None)
        except DataError:
            if is_whole or not has_rows:
                raise
            return
        if row is None:
            return
        has_rows = True
        yield row.values


class RemoteFile(io.RawIOBase):
    """A file behind an address that answers range requests, for readers that seek.

    Args:
        url: its address.
        size: its bytes.
        limit: bytes that are fetched at most.
    """

    def __init__(self, url: str, size: int, limit: int) -> None:
        super().__init__()
        self.size, self._url, self._limit, self._at = size, url, limit, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.size - self._at)
        if count <= 0:
            return 0
        data = self._fetch(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _fetch(self, count: int) -> bytes:
        """The next bytes; fewer than `count` only where the server sends fewer."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        self._limit -= count
        if self._limit < 0:
            raise DataError(
                "the first rows of this file are too large for a preview.",
                "Import it without a preview, or choose another split.",
            )
        wanted = f"bytes={self._at}-{self._at + count - 1}"
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": wanted}
        data = b""
        with get_session().stream("GET", self._url, headers=headers, follow_redirects=True) as response:
            hf_raise_for_status(response)
            skip = self._at if response.status_code != PARTIAL_CONTENT else 0
            for chunk in response.iter_bytes(1 << 16):
                dropped, chunk = min(skip, len(chunk)), chunk[min(skip, len(chunk)) :]
                skip -= dropped
                data += chunk
                if len(data) >= count:
                    break
        return data[:count]
