"""Trees of nodes that several views share."""

from __future__ import annotations

from studio.tree import progress_bar


def test_a_progress_bar_shows_its_share_and_reads_it_to_screen_readers():
    bar = progress_bar(0.256, "Download of a model")
    assert bar["vars"] == {"share": "25.6%"} and bar["cls"] == "bar busy"
    assert bar["attrs"] == {
        "role": "progressbar",
        "aria-label": "Download of a model",
        "aria-valuenow": "26",
        "aria-valuemin": "0",
        "aria-valuemax": "100",
    }
