"""Archives: hostile, damaged and foreign ones are refused, and leave nothing."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from core.errors import DataError, StudioError
from core.remote.bundle import RESULT_MEMBERS
from core.store import archives


def write_zip(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes], level: int = 9) -> Path:
    sums = "".join(
        f"{hashlib.sha256(b).hexdigest()}  {m if isinstance(m, str) else m.filename}\n" for m, b in members
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as z:
        for name, content in members:
            z.writestr(name, content)
        z.writestr(archives.SUMS, sums)
    return path


def make_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "members, expected",
    [
        ([("../x", b"x")], "'../x' is not allowed"),
        ([("/etc/x", b"x")], "'/etc/x' is not allowed"),
        ([("adapters/a/../../x", b"x")], "is not allowed"),
        ([("adapters/a/.hidden", b"x")], "is not allowed"),
        ([("adapters\\a\\x", b"x")], "is not allowed"),
        ([(make_link("adapters/a/x"), b"/etc/passwd")], "not a regular file"),
        ([("adapters/a/x", b"\0" * (8 << 20))], "compression ratio of 'adapters/a/x' must be at most 250"),
    ],
    ids=["up", "absolute", "through", "hidden", "backslash", "link", "bomb"],
)
def test_a_hostile_archive_is_refused_before_anything_is_extracted(
    tmp_path: Path, members: Any, expected: str
) -> None:
    path, place = write_zip(tmp_path / "r.zip", *members), tmp_path / "place"
    place.mkdir()
    with pytest.raises(DataError, match="r.zip") as error:
        archives.extract(path, place, RESULT_MEMBERS)
    assert expected in str(error.value) and not list(place.iterdir()) and not (tmp_path / "x").exists()


def test_a_large_damaged_or_foreign_archive_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    good = write_zip(tmp_path / "good.zip", ("run.json", b"{}"), ("adapters/a/x", b"abcd" * 9))
    for limit, value, expected in (
        ("COUNT_LIMIT", 2, "at most 2 members, got 3"),
        ("MEMBER_LIMIT_BYTES", 35, "GiB"),
        ("TOTAL_LIMIT_BYTES", 37, "GiB"),
        ("SUMS_LIMIT_BYTES", 5, "SHA256SUMS is missing or too large"),
    ):
        with monkeypatch.context() as m, pytest.raises(DataError, match=expected):
            m.setattr(archives, limit, value)
            archives.extract(good, tmp_path / limit, RESULT_MEMBERS)
    torn = tmp_path / "torn.zip"
    torn.write_bytes(good.read_bytes()[:-30])
    bare = tmp_path / "bare.zip"
    with zipfile.ZipFile(bare, "w") as z:
        z.writestr("run.json", "{}")
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as z:
        z.writestr("run.json", "[]")
        z.writestr(archives.SUMS, f"{hashlib.sha256(b'{}').hexdigest()}  run.json\n")
    for path, expected in (
        (torn, "cannot be read as a zip"),
        (bare, "SHA256SUMS is missing"),
        (other, "sha256 of run.json does not match SHA256SUMS"),
    ):
        with pytest.raises(DataError, match=expected):
            archives.extract(path, place / path.stem, RESULT_MEMBERS)
    (tmp_path / "linked.zip").symlink_to(good)
    with pytest.raises(StudioError, match="not a regular file"):
        archives.extract(tmp_path / "linked.zip", place, RESULT_MEMBERS)
    assert sorted(archives.extract(good, place / "good", RESULT_MEMBERS)) == ["adapters/a/x", "run.json"]


def test_the_most_compressible_content_can_be_packed_and_extracted(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(b"\0" * (16 << 20))
    archives.write(tmp_path / "a.zip", {"adapters/a/zeros": tmp_path / "zeros"})
    assert (tmp_path / "a.zip").stat().st_size < 1 << 20
    archives.extract(tmp_path / "a.zip", tmp_path / "place", RESULT_MEMBERS)
    assert (tmp_path / "place/adapters/a/zeros").stat().st_size == 16 << 20
