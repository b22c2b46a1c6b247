"""The headers of parquet pages, as several writers make them, and files that contradict themselves."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.formats import parquet
from core.data.formats.parquet_pages import Pages, survey_pages
from core.data.formats.readers import read_files
from core.errors import DataError


def write(texts, **options) -> tuple[io.BytesIO, list]:
    file = io.BytesIO()
    pq.write_table(pa.table({"t": texts}), file, **options)
    metadata = pq.ParquetFile(file).metadata
    return file, [metadata.row_group(i).column(0) for i in range(metadata.num_row_groups)]


def survey(file, chunk) -> Pages:
    return survey_pages(file, parquet._find_start(chunk), chunk.total_compressed_size, chunk.compression)


@pytest.mark.parametrize("codec", ["NONE", "SNAPPY", "GZIP", "BROTLI", "LZ4", "ZSTD"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_pages_of_every_codec_and_version_are_counted(codec, version):
    texts = [f"{'é' * (i % 7)} text {i % 50}" for i in range(3000)] + [None, ""]
    file, (chunk,) = write(texts, compression=codec, data_page_version=version, data_page_size=1000)
    pages = survey(file, chunk)
    assert pages.references == 3002 and pages.count > 2
    assert pages.longest == max(len((text or "").encode()) for text in texts)


def test_a_column_that_outgrows_its_dictionary_has_both_kinds_of_pages():
    texts = [f"{i} " + "x" * 1000 for i in range(5000)]
    file, chunks = write(texts, row_group_size=2500)
    for chunk in chunks:
        pages = survey(file, chunk)
        assert 0 < pages.references < 2500 and pages.longest == 1005
    file, (chunk,) = write(texts, use_dictionary=False)
    assert (survey(file, chunk).references, survey(file, chunk).longest) == (0, 0)


def test_damaged_headers_are_errors():
    file, (chunk,) = write(["a", "b"] * 500, data_page_size=100)
    whole, start = file.getvalue(), parquet._find_start(chunk)
    for at in range(start, min(start + 60, len(whole))):
        for byte in (0, 0x15, 0x7F, 0xFF):
            damaged = io.BytesIO(whole[:at] + bytes([byte]) + whole[at + 1 :])
            try:
                pages = survey(damaged, chunk)
            except ValueError:
                continue
            assert pages.count > 0
    with pytest.raises(ValueError, match="do not fit|cut off|incomplete"):
        survey_pages(file, start, chunk.total_compressed_size - 3, chunk.compression)


def test_a_dictionary_that_is_not_first_or_too_large_is_refused(monkeypatch):
    file, (chunk,) = write(["a", "b"] * 500, compression="NONE")
    start, size = parquet._find_start(chunk), chunk.total_compressed_size
    content = file.getvalue()[start : start + size]
    twice = io.BytesIO(content + content)
    with pytest.raises(ValueError, match="not at the beginning"):
        survey_pages(twice, 0, 2 * size, "UNCOMPRESSED")
    monkeypatch.setattr("core.data.formats.parquet_pages.DICTIONARY_LIMIT_BYTES", 9)
    with pytest.raises(ValueError, match="more than 9 bytes"):
        survey(file, chunk)


def test_a_batch_is_as_small_as_the_longest_text_wants(tmp_path, monkeypatch):
    """Every batch that pyarrow makes has room for the longest text of the dictionary in each row."""
    texts = ["short"] * 3000 + ["long " * 2000] * 3000
    pq.write_table(pa.table({"t": texts}), tmp_path / "a.parquet")
    sizes = []
    honest = parquet._count_decoded_bytes
    monkeypatch.setattr(
        parquet, "_count_decoded_bytes", lambda column: sizes.append(len(column)) or honest(column)
    )
    monkeypatch.setattr(parquet, "BATCH_BYTES", 100_000)
    assert [row.values["t"] for row in read_files([tmp_path / "a.parquet"])] == texts
    assert max(sizes) == 10 and len(sizes) == 600


def test_long_columns_are_not_kept_in_a_dictionary(tmp_path, monkeypatch):
    """What pyarrow has in memory does not grow with the rows of a row group."""
    messages = [[{"role": "user", "content": f"Question {i} {'x' * 900}"}] for i in range(20_000)]
    pq.write_table(pa.table({"t": [m[0]["content"] for m in messages]}), tmp_path / "flat.parquet")
    pq.write_table(pa.table({"messages": messages}), tmp_path / "nested.parquet")
    for name in ("flat", "nested"):
        before, peak = pa.total_allocated_bytes(), 0
        with open(tmp_path / f"{name}.parquet", "rb") as f:
            for _ in parquet.read_parquet(f, name):
                peak = max(peak, pa.total_allocated_bytes() - before)
        assert peak < 12_000_000, name  # the texts have 18 MB; in a dictionary they would be there


def test_metadata_that_hides_a_dictionary_does_not_help(tmp_path, monkeypatch):
    """The guard looks at the pages: here the column's list of encodings is not looked at."""
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["z" * 1_000_000]))
    pq.write_table(pa.table({"text": repeated}), tmp_path / "a.parquet", store_schema=False)
    with pytest.raises(DataError, match="decodes to more than 67,108,864 bytes"):
        read_files([tmp_path / "a.parquet"])
