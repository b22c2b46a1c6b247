"""Child processes that do one job: their command, and the messages between them and their parent.

    parent ─ stdin: a pickled request ─> child
    child ─ stdout: {"log": ...}, {"ask": ...} ─> parent ─ {"answer": ...} or {"error": ...} ─> child
    child ─ stdout: {"result": ...} or {"error": ...} ─> parent

After the request, a message is one line of JSON. `ChildProcess` is the parent's side, `serve` the child's.
A child reports its progress as a question, so that the answer can cancel the work. A child whose parent has
ended gets no answer and stops in the same way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from core import errors
from core.errors import Cancelled, StudioError
from core.progress import ReadProgress

logger = logging.getLogger(__name__)

Question = Mapping[str, Any]
Answer = Callable[[Question], Any]  # what it raises is raised in the child

END_SECONDS = 10.0  # that a child has after its last message
ASK_SECONDS = 0.2  # between two reports of progress
OUTPUT_LIMIT_BYTES = 4000  # of what a child printed before an unexpected end, for the log
_AGAIN = "It may have run out of memory. Close other programs and try again."
_ROOT = Path(__file__).resolve().parents[2]
# `-I` keeps the working directory and the environment's Python settings out of the child, and with them the
# packages of the user; the child gets the search path of this process instead.
_CODE = (
    "import importlib, json, sys; path, module, function, *rest = sys.argv[1:];"
    "sys.path[:] = json.loads(path); sys.argv[1:] = rest;"
    "getattr(importlib.import_module(module), function)()"
)


def build_child_command(module: str, function: str, *arguments: str) -> list[str]:
    """The command that calls a function without arguments in a process of its own.

    Args:
        module: dotted name of its module.
        function: its name.
        arguments: what it finds in `sys.argv` from 1 on.
    """
    path = json.dumps([*filter(None, sys.path), str(_ROOT)])
    return [sys.executable, "-I", "-c", _CODE, path, module, function, *arguments]


def limit_process(memory: int, seconds: int) -> None:
    """Limits what this process may use, where the system can; it writes no core file.

    Args:
        memory: bytes of its address space.
        seconds: of processor time.
    """
    try:
        resource = importlib.import_module("resource")
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# ---------------------------------------------------------------- the parent's side


class ChildProcess:
    """A process that does one job. `end` may be called from any thread.

    Args:
        module: dotted name of the module with the job.
        what: what an error calls the job, such as "import".
        function: the function that calls `serve`.

    Attributes:
        process: while it runs.
        ended_early: whether it ended without a result or an error of its own.
    """

    def __init__(self, module: str, what: str, function: str = "run") -> None:
        self._module, self._function, self.what = module, function, what
        self._is_killed = self.ended_early = False
        self.process: subprocess.Popen[bytes] | None = None

    def end(self) -> None:
        """Ends the process at once, or keeps it from starting."""
        self._is_killed = True
        if (process := self.process) is not None:
            process.kill()

    def run(self, request: object, answer: Answer = lambda question: None) -> Any:
        """Starts the process, answers its questions, and returns its result.

        Args:
            request: what the job is; it can be pickled.
            answer: answers a question of the child; returns what JSON can hold.

        Raises:
            StudioError: what the child raised, of the same class and with the same attributes; or its
                unexpected end. Cancelled: `end` was called.
        """
        with tempfile.TemporaryFile() as printed:
            with subprocess.Popen(
                build_child_command(self._module, self._function),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
            ) as process:
                self.process = process
                try:
                    message = self._communicate(process, request, answer)
                    _wait(process)
                finally:
                    process.kill()
                    self.process = None
            if message is None:
                self.ended_early = True
                raise self._describe_end(process.returncode, printed)
        if "error" in message:
            raise rebuild_error(message["error"])
        return message["result"]

    def _communicate(
        self, process: subprocess.Popen[bytes], request: object, answer: Answer
    ) -> dict[str, Any] | None:
        """Returns the last message of the child; None if it ended without one."""
        assert process.stdin is not None and process.stdout is not None
        if self._is_killed:
            return None
        level = logging.getLogger().getEffectiveLevel()
        try:
            process.stdin.write(pickle.dumps((level, self.what, request)))
            process.stdin.flush()
            for line in process.stdout:
                message: dict[str, Any] = json.loads(line)
                if "log" in message:
                    name, level, text = message["log"]
                    logging.getLogger(name).log(level, "%s", text)
                elif "ask" in message:
                    process.stdin.write(_to_line(_answer(answer, message["ask"])))
                    process.stdin.flush()
                else:
                    return message
        except (BrokenPipeError, ValueError):  # it ended in the middle of a message
            return None
        return None

    def _describe_end(self, code: int, printed: IO[bytes]) -> StudioError:
        if self._is_killed:
            return Cancelled(f"The {self.what} was cancelled.")
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - OUTPUT_LIMIT_BYTES))
        text = printed.read().decode("utf-8", "replace").strip()
        logger.error("the process of the %s ended with code %s: %s", self.what, code, text)
        how = f"was killed (signal {-code})" if code < 0 else f"ended with code {code}"
        return StudioError(f"The process of the {self.what} {how}.", _AGAIN)


def _answer(answer: Answer, question: Question) -> dict[str, Any]:
    try:
        return {"answer": answer(question)}
    except StudioError as e:
        return {"error": describe_error(e)}


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Waits for the end of a child that has sent its last message."""
    with contextlib.suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)


# ---------------------------------------------------------------- the child's side


class Parent(logging.Handler):
    """The process that started this one; as a handler, it sends what is logged here into the parent's log."""

    def __init__(self, input: IO[bytes], output: IO[bytes]) -> None:
        super().__init__()
        self._input, self._output = input, output
        self._reported, self._text = 0.0, ""

    def ask(self, question: Question) -> Any:
        """Asks the parent, and returns its answer.

        Raises:
            StudioError: what the parent raised. Cancelled: the parent has ended, too.
        """
        try:
            self.send({"ask": question})
            line = self._input.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise Cancelled("The process that started this one has ended.")
        message = json.loads(line)
        if "error" in message:
            raise rebuild_error(message["error"])
        return message["answer"]

    def report(self, progress: ReadProgress) -> None:
        """Reports the progress, unless the last report was a moment ago.

        Raises:
            Cancelled: the work has to end.
        """
        now = time.monotonic()
        if now - self._reported < ASK_SECONDS and progress.text == self._text:
            return
        self._text = progress.text
        self.ask({"progress": dataclasses.asdict(progress)})
        self._reported = time.monotonic()

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message.

        Raises:
            OSError: the parent has ended.
        """
        self.acquire()
        try:
            self._output.write(_to_line(message))
            self._output.flush()
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Sends a record of the log."""
        with contextlib.suppress(OSError):
            self.send({"log": [record.name, record.levelno, self.format(record)]})


def serve(work: Callable[[Any, Parent], Any]) -> None:
    """Does one job in this process: reads the request, works, and sends the result or the error.

    What libraries print goes to standard error.

    Args:
        work: receives the request and the parent; returns what JSON can hold.
    """
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    level, what, request = pickle.load(sys.stdin.buffer)
    parent = Parent(sys.stdin.buffer, output)
    logging.getLogger().addHandler(parent)
    logging.getLogger().setLevel(level)
    try:
        message = {"result": work(request, parent)}
    except StudioError as e:
        message = {"error": describe_error(e)}
    except MemoryError:
        message = {"error": describe_error(StudioError(f"The {what} ran out of memory.", _AGAIN))}
    except KeyboardInterrupt:  # Ctrl-C in the terminal reaches this process, too
        message = {"error": describe_error(Cancelled(f"The {what} was cancelled."))}
    except Exception as e:  # a defect
        logger.exception("the %s failed", what)
        message = {"error": describe_error(StudioError(f"The {what} failed: {type(e).__name__}: {e}"))}
    with contextlib.suppress(OSError):
        parent.send(message)


# ---------------------------------------------------------------- messages


def describe_error(error: StudioError) -> dict[str, Any]:
    """An error as JSON: its class, and its attributes."""
    values = {name: _to_json(value) for name, value in vars(error).items() if not name.startswith("__")}
    return {"class": type(error).__name__, "values": values}


def rebuild_error(described: Mapping[str, Any]) -> StudioError:
    """The error that `describe_error` described, of the class and with the attributes that it had."""
    kind = getattr(errors, described["class"], StudioError)
    values = dict(described["values"])
    error: StudioError = kind.__new__(kind)
    StudioError.__init__(error, values["what"], values["fix"])
    if "candidates" in values:
        from core.data.formats.text_encodings import Candidate

        values["candidates"] = [Candidate(**_to_tuples(candidate)) for candidate in values["candidates"]]
    vars(error).update(values)
    return error


def _to_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return value


def _to_line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
