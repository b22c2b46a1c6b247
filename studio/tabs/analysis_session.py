"""The analysis work of one browser session: at most one stream at a time, and the latest map and search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.analyze.search_results import SearchComparison
    from core.store.weight_maps import WeightMap


class AnalysisSession:
    """Lives in `gr.State`, so on the server.

    Attributes:
        serial: number of the current request; a request with a lower one has been replaced or stopped.
        latest: output on the page -> serial of the last request that writes to it.
        stream: the stream of the current request, else None.
        map: the weight map that is shown.
        search: the result of the weight search that is shown.
    """

    def __init__(self) -> None:
        self.serial = 0
        self.latest: dict[str, int] = {}
        self.stream: Any = None
        self.map: WeightMap | None = None
        self.search: SearchComparison | None = None

    def __deepcopy__(self, memo: Any) -> AnalysisSession:
        return AnalysisSession()  # Gradio copies the initial value of a state for every session

    def stop(self) -> None:
        """Stops the current request."""
        self.serial += 1
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def follow(self, output: str, stream: Any) -> Iterator[Any]:
        """Stops the current request and yields the parts of a new stream.

        Yields:
            the stream's parts; at last None if it was stopped, unless a newer request writes to `output`.
        """
        self.stop()
        serial, self.stream = self.serial, stream
        self.latest[output] = serial
        try:
            for part in stream:
                if self.serial != serial:
                    break
                yield part
        finally:
            stream.close()
        if self.serial != serial and self.latest[output] == serial:
            yield None
