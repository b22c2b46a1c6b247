"""The studio as one class, for scripts and RAG systems: set a model up, train on documents, ask questions.

Everything is a few calls of `core.engine`, which has the rest: mixes, comparisons, exports, runs that resume.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.data.datasets import Dataset
from core.engine import Engine
from core.engine.fine_tuning import FineTuning, FineTuningStatus
from core.errors import BaseModelError, NotFound
from core.spec.fine_tuning import FineTuningConfig as FineTuningConfig
from core.spec.mix import Sampling


class PEFTAdapterManager:
    """Fine-tunes a model on documents and answers with the result, or with the base while there is none.

    Args:
        config: of the model and its training.
        workspace: the folder that holds documents, runs and adapters; a later start finds them again.
        engine: an open engine to use instead of an own one; its base is not changed.

    Attributes:
        problem: why the last training left no adapter, for the user; "" without a problem.

    Example:
        with PEFTAdapterManager(FineTuningConfig(model_name="embedded", num_epochs=1)) as manager:
            if manager.setup_fine_tuning_pipeline(["The lamp is kept in the north room."]):
                answer = manager.generate_response("Where is the lamp?")
    """

    def __init__(
        self,
        config: FineTuningConfig | None = None,
        workspace: str | Path = "workspace",
        engine: Engine | None = None,
    ) -> None:
        self.config = config or FineTuningConfig()
        self.problem = ""
        self._workspace = workspace
        self._engine, self._is_own = engine, engine is None
        self._dataset: Dataset | None = None

    def setup_model(self) -> None:
        """Loads the model of the configuration; does nothing where it is loaded.

        Raises:
            BaseModelError: it cannot be loaded, for example because it is not on this machine and the Hub
                cannot be reached; or a given engine has another base.
        """
        if self._engine is None:
            self._engine = Engine(self._workspace, self.config.model_name)
        info = self._engine.bases.current(wait=True)
        if info.error:
            what, fix = info.error, "Give another model_name, such as embedded, or download the model first."
            self.close()
            raise BaseModelError(what, fix)
        if info.name != self.config.model_name:
            raise BaseModelError(
                f"The engine has the base {info.name!r}, got the model_name {self.config.model_name!r}.",
                "Give the configuration the same model_name.",
            )

    def setup_fine_tuning_pipeline(self, documents: Iterable[Any]) -> bool:
        """Loads the model, imports the documents, and trains on them.

        Args:
            documents: texts, mappings with "text" or "content", or objects with `page_content`.

        Returns:
            Whether the adapter is trained and answers; if not, `problem` says why.

        Raises:
            StudioError: the model or the documents cannot be used.
        """
        self.setup_model()
        self._dataset = self._tuner.import_documents(documents)
        return self.train_model()

    def train_model(self) -> bool:
        """Trains a new version on the documents that were imported last.

        Returns:
            Whether it is trained; if not, `problem` says why.

        Raises:
            NotFound: no documents were imported. StudioError: the run cannot start.
        """
        self.setup_model()
        dataset = self._dataset or self._tuner.find_dataset()
        engine = self._open_engine
        run = engine.runs.wait(self._tuner.start(self.config, dataset), seconds=7 * 86400.0)
        mix, _ = self._tuner.find_mix()
        is_trained = run.adapter in mix.weights
        self.problem = "" if is_trained else run.error or f"{run.explanation} {run.next_step}"
        return is_trained

    def generate_response(self, question: str, max_new_tokens: int = 96) -> str:
        """Answers a question with the newest version, or with the base where none is trained.

        Raises:
            StudioError: the model cannot be loaded, or the question is empty or too long.
        """
        self.setup_model()
        mix, _ = self._tuner.find_mix()
        sampling = Sampling(max_new_tokens=max_new_tokens)
        frame = self._open_engine.chat.stream(question, [mix], sampling).last()
        return str(frame.columns[0].text)

    def status(self) -> FineTuningStatus:
        """Whether a version is trained, and where the newest run is.

        Raises:
            NotFound: `setup_model` was not called.
        """
        return self._tuner.status()

    def close(self) -> None:
        """Closes the engine, if it is an own one; a run that trains saves a checkpoint first."""
        if self._is_own and self._engine is not None:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> PEFTAdapterManager:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise NotFound("No model is set up.", "Call setup_model first.")
        return self._engine

    @property
    def _tuner(self) -> FineTuning:
        return FineTuning(self._open_engine)
