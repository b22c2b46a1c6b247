"""EleutherAI's lm-evaluation-harness on mixes. `engine.harness`. The harness is an optional extra."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.engine.resident_base import ResidentBase
from core.engine.worker import Worker
from core.errors import DataError, NotFound, SpecError, StudioError
from core.progress import Progress
from core.spec.harness import HarnessSettings
from core.spec.mix import Mix
from core.store import adapters, reports
from core.store.reports import Report
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.model.resident import Resident

INSTALL = 'Install it: pip install "adapter-studio[harness]"'
SOURCE = "harness"  # what a report names as its dataset
PACKAGES = ("lm_eval", "torch", "transformers", "peft", "datasets")
LEFT_OUT = ("samples", "pretty_env_info")  # of the harness's results: too long, and about the machine


class Harness:
    """Measures mixes on the harness's tasks. Safe to call from any thread but the worker's own."""

    def __init__(self, workspace: Workspace, worker: Worker, resident_base: ResidentBase) -> None:
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base

    def measure(
        self,
        mixes: Sequence[Mix],
        settings: HarnessSettings,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> Report:
        """Runs tasks on mixes, one mix after the other, and stores a report.

        Args:
            report: receives the progress.

        Returns:
            The report. Its rows have the figures under "TASK METRIC"; the harness's own results lie beside
            it, in harness.json, with the versions of all packages.

        Raises:
            SpecError: the harness is not installed, or a mix cannot be measured. NotFound: it has no such
                task. DataError: the task could not be run, for example without its data.
        """
        _check(mixes, settings)
        begin = time.monotonic()
        found = []
        for index, mix in enumerate(mixes):

            def show(progress: Progress, mix: Mix = mix, index: int = index) -> None:
                share = (index + progress.done / max(progress.total, 1)) / len(mixes)
                report(Progress(round(1000 * share), 1000, f"{progress.text} with {mix.name or mix}"))

            found.append(self._run(mix, settings, show))
        rows = [
            {"name": m.name or str(m), "mix": str(m), "weights": m.weights, **list_figures(results)}
            for m, results in zip(mixes, found, strict=True)
        ]
        seconds, base = round(time.monotonic() - begin, 2), self._resident_base.info.name
        name = ", ".join(settings.tasks)[:200]
        saved = reports.save(self._workspace, SOURCE, name, "test", base, seconds, rows)
        details = {
            "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
            "python": platform.python_version(),
            "settings": settings.to_json(),
            "adapters": {a: adapters.load(self._workspace, a).sha256 for m in mixes for a in m.weights},
            "mixes": [
                {"mix": str(m), **{k: v for k, v in results.items() if k not in LEFT_OUT}}
                for m, results in zip(mixes, found, strict=True)
            ],
        }
        text = json.dumps(details, ensure_ascii=False, default=str, indent=2)
        reports.add_file(self._workspace, saved.id, "harness.json", text.encode())
        return saved

    def _run(self, mix: Mix, settings: HarnessSettings, show: Callable[[Progress], None]) -> dict[str, Any]:
        """The harness's results for one mix."""
        from lm_eval import simple_evaluate

        from core.evaluate.harness_model import MixModel
        from core.evaluate.harness_scoring import check_mix

        def run(steps: Callable[[Resident], Any]) -> Any:
            value: Any = None
            for value in self._worker.stream(lambda: steps(self._resident_base.get())):
                if isinstance(value, Progress):
                    show(value)
            return value

        resident = self._worker.call(self._resident_base.get)
        check_mix(resident, mix)
        manager = _find_tasks(settings)
        try:
            results = simple_evaluate(
                model=MixModel(resident.base, mix, run, settings.max_new_tokens),
                tasks=list(settings.tasks),
                num_fewshot=None if settings.shots < 0 else settings.shots,
                limit=settings.limit or None,
                apply_chat_template=settings.chat_template,
                bootstrap_iters=settings.resamples,
                task_manager=manager,
            )
        except StudioError:
            raise
        except Exception as e:
            raise DataError(
                f"The harness could not run {', '.join(settings.tasks)}: {type(e).__name__}: {str(e)[:300]}",
                "Its data comes from the Hub: check the connection, or the task's file.",
            ) from e
        return dict(results)


def _check(mixes: Sequence[Mix], settings: HarnessSettings) -> None:
    if not mixes:
        raise SpecError("No mix is chosen.", "Choose at least one; the base is the empty mix.")
    if not settings.tasks:
        raise SpecError("No task is chosen.", "Name at least one, for example arc_easy.")
    if importlib.util.find_spec("lm_eval") is None:
        raise SpecError("The lm-evaluation-harness is not installed.", INSTALL)


def _find_tasks(settings: HarnessSettings) -> Any:
    """The harness's index of tasks; where the user's folder has all of them, it alone is read.

    Raises:
        NotFound: a task is in neither.
    """
    from lm_eval.tasks import TaskManager

    folder = settings.tasks_folder or None
    if folder and not Path(folder).is_dir():
        raise NotFound(f"The folder {folder!r} does not exist.", "Check the path.")
    manager = TaskManager(include_path=folder, include_defaults=False)
    if set(settings.tasks) <= set(manager.all_tasks):
        return manager
    manager = TaskManager(include_path=folder)
    if unknown := [t for t in settings.tasks if t not in manager.all_tasks]:
        raise NotFound(
            f"The harness has no task {unknown[0]!r}.",
            "`lm-eval ls tasks` lists its tasks; --tasks-folder names a folder with your own.",
        )
    return manager


def list_figures(results: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of the harness's results as "TASK METRIC": those of a filter as "TASK METRIC (FILTER)"."""
    figures: dict[str, float | None] = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, rule = key.partition(",")
            if comma:
                name = f"{task} {metric}" if rule == "none" else f"{task} {metric} ({rule})"
                figures[name] = float(value) if isinstance(value, (int, float)) else None
    return figures
