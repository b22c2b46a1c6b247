"""The engine: opens a workspace and a base model, and holds the objects that the page and the terminal call.

Every operation is a method of one of these objects, such as `engine.runs.start`. Work on the model runs on
the worker's thread, which also imports torch, so that the page appears before torch is loaded.
"""

from __future__ import annotations

from pathlib import Path

from core.data.samples import Samples
from core.engine.adapter_imports import AdapterImports
from core.engine.analysis import Analysis
from core.engine.answer_quality import AnswerQuality
from core.engine.bases import Bases
from core.engine.calibration import Calibration
from core.engine.chat import Chat
from core.engine.datasets import Datasets
from core.engine.evaluation import Evaluation
from core.engine.experiments import Experiments
from core.engine.exports import Exports
from core.engine.gpu_answers import GpuAnswers
from core.engine.gpu_calls import GpuCalls
from core.engine.grid_experiments import GridExperiments
from core.engine.grids import Grids
from core.engine.harness import Harness
from core.engine.imports import Imports
from core.engine.inspection import Inspections
from core.engine.judges import Judges
from core.engine.library import Library
from core.engine.ownership import Ownership
from core.engine.promotions import Promotions
from core.engine.queue import RunQueue
from core.engine.resident_base import DEFAULT_BASE, ResidentBase
from core.engine.retrieval import Retrieval
from core.engine.run_executor import RunExecutor
from core.engine.runs import Runs
from core.engine.serving import Serving
from core.engine.sliced_runs import SlicedRuns
from core.engine.votes import Votes
from core.engine.worker import Worker
from core.gguf.model_stores import ModelFolders
from core.store.workspace import Workspace


class Engine:
    """One studio: a workspace, a base, and a worker. Safe to use from any thread.

    Args:
        workspace: the folder of all datasets, adapters, runs and reports; created if it does not exist.
        base: "embedded", a local folder, a Hub id, "smollm2-135m", a GGUF file or a model of Ollama; "" is
            the base chosen last in this workspace, or the embedded one.
        quantization: "auto", "nf4", "int8" or "none".
        device: "auto", "cpu" or "cuda".
        load: load the base now; otherwise operations on the model raise BaseModelError until
            `bases.load()` has loaded it.
        folders: where other programs keep their models; None means the usual folders of this user.
        answers: "exact" (in the base's own precision), "fast" (from 8-bit weights where a CPU base has them),
            or "auto" (8-bit weights where a probe shows that they pay).
        gpu: answers and trains in processes that have a GPU for a limited time; None uses the resident base.

    Attributes:
        datasets, imports, inspection, library, bases: what is stored, and the base models.
        adapter_imports: adapters that other tools made.
        runs, queue, grids: training.
        chat, votes, analysis, evaluation: using and understanding mixes.
        experiments: mixes and documents on the same questions, with intervals.
        judges: verdicts of judges and of people on the answers of experiments.
        promotions: which mix the name `production` stands for.
        retrieval: searching the documents of datasets.
        harness: the tasks of EleutherAI's lm-evaluation-harness.
        serving: answers for other programs, all in one running batch.
        exports: files for other tools.
        calibration: the gates of adapters, for weights on Auto.
        samples: the sample data that ships with the studio.
        worker: the thread that owns the model.
        notices: what is not possible in this workspace now, and why, a sentence or two each; usually empty.
        resident_base: the base model in memory; only the worker's thread may call its `get`.

    Example:
        with Engine("workspace") as engine:
            data = engine.datasets.import_files(["notes.md"], "Notes")
            spec = resolve("domain", "standard", {"dataset": data.id, "name": "Notes"})
            run = engine.runs.wait(engine.runs.start(spec))
            answer = engine.chat.stream("Where is the lamp?", [Mix(weights={run.adapter: 1.0})]).last()
            text = answer.columns[0].text
    """

    def __init__(
        self,
        workspace: str | Path,
        base: str = DEFAULT_BASE,
        quantization: str = "auto",
        device: str = "auto",
        load: bool = True,
        folders: ModelFolders | None = None,
        answers: str = "exact",
        gpu: GpuCalls | None = None,
    ) -> None:
        folders = folders or ModelFolders.find({})
        self.workspace = Workspace(workspace)
        self._ownership = Ownership(self.workspace)
        self.notices: list[str] = self._ownership.notices
        self.samples = Samples()
        self.worker = worker = Worker()
        self.resident_base = resident_base = ResidentBase(
            self.workspace, worker, base, quantization, device, folders, answers
        )
        self.datasets = Datasets(self.workspace, worker, resident_base.get)
        self.imports = Imports(self.datasets)
        self.inspection = Inspections(self.workspace, worker, resident_base.get)
        self.queue = RunQueue(self.workspace, worker, resident_base)
        self.calibration = Calibration(self.workspace, worker, resident_base, lambda: self.samples)
        self._executor = RunExecutor(
            self.workspace,
            worker,
            resident_base,
            self.queue,
            lambda: self.samples,
            self.calibration.start_for_run,
            SlicedRuns(self.workspace, gpu.train, gpu.slice_seconds) if gpu else None,
        )
        self.runs = Runs(self.workspace, worker, resident_base, self.queue, self._executor)
        self.library = Library(self.workspace, worker, resident_base, self.runs)
        self.adapter_imports = AdapterImports(self.workspace, worker, resident_base)
        self.bases = Bases(self.workspace, worker, resident_base, self.runs, folders)
        self._gpu_answers = GpuAnswers(self.workspace, resident_base, gpu.answer) if gpu else None
        self.answer_quality = AnswerQuality(self.workspace)
        record = self.answer_quality.record
        self.chat = Chat(worker, resident_base.get, self._gpu_answers, record)
        self.serving = Serving(worker, resident_base.get, record)
        self.votes = Votes(self.workspace)
        self.retrieval = Retrieval(self.workspace)
        self.analysis = Analysis(self.workspace, worker, resident_base.get)
        self.evaluation = Evaluation(
            self.workspace, worker, resident_base, self.datasets, lambda: self.samples
        )
        self.harness = Harness(self.workspace, worker, resident_base)
        self.experiments = Experiments(
            self.workspace,
            worker,
            resident_base,
            self.datasets,
            self.library,
            self.retrieval,
            lambda: self.samples,
            self.bases,
        )
        grid_experiments = GridExperiments(
            self.workspace,
            resident_base,
            self.runs,
            self.library,
            self.datasets,
            self.retrieval,
            self.experiments,
        )
        self.grids = Grids(self.workspace, self.runs, self.queue, grid_experiments)
        self.judges = Judges(self.workspace, worker, resident_base, self.library, self.experiments)
        self.promotions = Promotions(self.workspace, self.library, self.datasets, self.experiments)
        self.exports = Exports(self.workspace, worker, resident_base, self.datasets, lambda: self.samples)
        if load:
            self.bases.load()

    def close(self) -> None:
        """Ends the worker. A run that is training saves a checkpoint first and can be resumed.

        Requests that still wait for the model end with an error.
        """
        self.grids.experiments.close()
        self.experiments.close()
        self.judges.close()
        self.exports.close()
        self.calibration.close()
        self.imports.close()
        self.retrieval.close()
        self.inspection.close()
        if self._gpu_answers:
            self._gpu_answers.close()
        self._executor.request_close()
        self.bases.stop_download()
        self.resident_base.close()
        self.worker.close()
        self.queue.release()
        self._ownership.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
