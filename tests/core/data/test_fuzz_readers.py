"""Two hundred generated and damaged files; `benchmarks/fuzz_readers.py` reads ten thousand."""

import os

from benchmarks.fuzz_readers import MAKERS, fuzz, make_file
from core.data.formats.readers import FORMATS


def test_damaged_files_are_read_or_refused_in_words_and_leave_nothing(tmp_path):
    # A PDF is read in a process of its own, which takes most of the time of the long run.
    results, failures = fuzz(200, 7, tmp_path, without=(".pdf",))
    assert failures == [] and results.total() == 200
    assert results["read"] > 30 and results["refused"] > 30
    assert os.listdir(tmp_path) == ["temp"]


def test_every_format_is_among_the_files():
    assert set(FORMATS) <= {*MAKERS, ".htm", ".xhtml", ".markdown"}
    assert {os.path.splitext(make_file(n, 0)[0])[1] for n in range(300)} == {*MAKERS, ".gz", ".zip"}
    assert make_file(5, 0) == make_file(5, 0) != make_file(6, 0)
