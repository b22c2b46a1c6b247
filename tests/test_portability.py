"""What Linux has and macOS or Windows lack: it is used in named places only, and each has a fallback.

Nothing here runs on another system. Its absence is simulated: modules that cannot be imported, functions and
signals that do not exist, folders that cannot be opened. README.md says what was run where.
"""

from __future__ import annotations

import ast
import errno
import functools
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import StorageError
from core.store import files, snapshot
from core.store.files import read_json, storage_error, sync_folder, write_json
from core.store.locks import FileLock
from core.store.workspace import Workspace, make_id
from core.train import job, launcher, signals

ROOT = Path(__file__).resolve().parents[1]
# A name that a system may lack -> the files that may use it, each with a fallback.
HOMES = {
    r"\bfcntl\b": ("core/store/locks.py", "core/store/large_files.py"),
    r"\bmsvcrt\b": ("core/store/locks.py",),
    r"\bos\.link\b": ("core/store/files.py", "core/store/snapshot.py"),
    r"\bos\.(killpg|kill)\b": ("core/train/launcher.py",),
    r"\bos\.(exec\w+)\b": ("launch.py",),
    r"\bos\.(sched_\w+)\b": ("core/train/machine.py", "core/train/threads.py"),
    r"\bsignal\.(SIGKILL|SIGHUP|SIGUSR\d|SIGALRM|SIGCHLD|SIGQUIT|alarm|setitimer)\b": (
        "core/train/launcher.py",
    ),
    r"\bselect\.": ("core/train/job.py",),
    r"[\"']/(proc|sys)/": (
        "core/train/machine.py",
        "core/train/memory.py",
        "core/train/memory_probe.py",
        "core/train/threads.py",
        "core/server/metrics.py",
    ),
    r"\bos\.(fork|forkpty|getuid|geteuid|getgid|setsid|getpgid|nice)\b": (),
    r"\bos\.(mkfifo|mknod|chown|statvfs|uname|EX_\w+)\b": (),
    r"^\s*(import|from) (resource|pwd|grp|termios|tty|pty|posix|syslog|crypt|spwd|winreg|_winapi)\b": (),
}
# Modules and attributes that are removed before everything of ours is imported again.
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "readline")
ATTRIBUTES = {
    "os": (
        "fork", "forkpty", "killpg", "getuid", "geteuid", "getgid", "getegid", "setsid", "getpgid",
        "setpgid", "sched_getaffinity", "sched_setaffinity", "statvfs", "mkfifo", "mknod", "chown",
        "uname", "getloadavg", "nice", "link", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC",
        "EX_OK", "EX_USAGE", "WNOHANG",
    ),
    "signal": (
        "SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGQUIT", "SIGPIPE", "alarm",
        "setitimer", "pthread_sigmask", "sigwait",
    ),
    "select": ("poll", "epoll"),
    "time": ("tzset",),
}  # fmt: skip


# Modules that stand on an optional package and are imported only where it is used.
OPTIONAL = {"core.evaluate.harness_model": "lm_eval"}


def modules() -> list[str]:
    """The names of all modules of the core, the page and the launcher."""
    paths = [p for folder in ("core", "studio") for p in sorted((ROOT / folder).rglob("*.py"))]
    names = [p.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for p in paths]
    return [n.removesuffix(".__init__") for n in names if not n.endswith("__main__")] + ["launch"]


@functools.cache
def read_code() -> dict[str, str]:
    """File -> its code without docstrings and comments."""
    texts = {}
    for name in modules():
        path = ROOT / (name.replace(".", "/") + ".py")
        path = path if path.exists() else ROOT / name.replace(".", "/") / "__init__.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(node):
                node.body[0] = ast.Pass()
        texts[path.relative_to(ROOT).as_posix()] = ast.unparse(tree)
    return texts


@pytest.mark.parametrize("word", HOMES)
def test_what_a_system_may_lack_stands_in_named_files_only(word: str) -> None:
    for place, text in read_code().items():
        assert place in HOMES[word] or not re.search(word, text, re.MULTILINE), place


def test_every_module_is_imported_where_the_names_of_unix_are_missing() -> None:
    names = [n for n in modules() if n not in OPTIONAL or importlib.util.find_spec(OPTIONAL[n])]
    code = f"""
import importlib, sys
names = {names!r}
for name in names:  # once as usual, so that all packages of others are loaded
    importlib.import_module(name)
for name in [n for n in sys.modules if n.split(".")[0] in ("core", "studio", "launch")]:
    del sys.modules[name]
for name in {MODULES!r}:
    sys.modules[name] = None
for module, attributes in {ATTRIBUTES!r}.items():
    for attribute in attributes:
        if hasattr(sys.modules[module], attribute):
            delattr(sys.modules[module], attribute)
for name in names:
    importlib.import_module(name)
from core.engine import Engine
print(len(names), Engine.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(len(names)), "Engine"], done.stderr[-2000:]


# ------------------------------------------------------------ folders, links, names


def test_a_folder_that_cannot_be_opened_is_not_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")  # as Windows does
        return open_file(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    write_json(tmp_path / "a.json", 1)
    workspace = Workspace(tmp_path / "w")
    with workspace.build("reports", "r", "r") as draft:
        write_json(draft.path / "report.json", 2)
    workspace.restore(workspace.remove("reports", "r").entry)
    assert read_json(tmp_path / "a.json") == 1 and workspace.ids("reports") == ["r"]


@pytest.mark.parametrize(
    ("number", "is_raised"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)]
)
def test_only_a_failing_disk_is_an_error_of_a_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_raised: bool
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if is_raised:
        with pytest.raises(OSError):
            sync_folder(tmp_path)
    else:
        sync_folder(tmp_path)


@pytest.mark.parametrize("how", ["missing", "refused"])
def test_folders_are_copied_where_files_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if how == "missing":
        monkeypatch.delattr(os, "link")
    else:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a" / "inner").mkdir(parents=True)
    (tmp_path / "a" / "inner" / "file").write_text("x")
    (tmp_path / "b").mkdir()
    files.link_folder(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "inner" / "file").read_text() == "x"
    assert (tmp_path / "b" / "inner" / "file").stat().st_nlink == 1


class WindowsError(PermissionError):
    """An error of Windows: it carries the number of the system."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.EACCES, "Access is denied")
        self.winerror = number


@pytest.mark.parametrize("number", [5, 32, 33])
def test_a_file_that_is_being_read_elsewhere_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Windows does not replace a file while another process has it open."""
    replace, failures = os.replace, [3]

    def refuse(source: Any, target: Any) -> None:
        if failures[0]:
            failures[0] -= 1
            raise WindowsError(number)
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    write_json(tmp_path / "a.json", 1)
    assert read_json(tmp_path / "a.json") == 1 and failures == [0]
    monkeypatch.setattr(files, "OPEN_SECONDS", 0.1)
    failures[0] = 10**6
    with pytest.raises(StorageError, match="is open in another program, or you may not change it"):
        write_json(tmp_path / "a.json", 2)
    assert read_json(tmp_path / "a.json") == 1 and not list(tmp_path.glob(".*"))


def test_a_path_that_is_too_long_is_named_in_words(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="too long for this system.*shorter path"):
        write_json(tmp_path / ("x" * 250) / ("y" * 260), 1)
    assert "too long" in storage_error(WindowsError(206), tmp_path / "a").what


@pytest.mark.parametrize("name", ["CON", "nul", "Aux", "COM1", "lpt9", "Ünïcode", "a.", "b ", "x" * 200, "."])
def test_every_id_is_a_file_name_on_every_system(name: str) -> None:
    item_id = make_id(name)
    assert re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{4}", item_id) and len(item_id) <= 45
    assert snapshot.NAMES.fullmatch(f"datasets/{item_id}/dataset.json")


def test_ids_differ_also_where_case_is_ignored() -> None:
    assert all(c == c.lower() for c in make_id("ABC Straße İ"))


# ------------------------------------------------------------ processes and signals


class FakeProcess:
    """A process that does not end when it is asked to."""

    pid, stdin = 4242, None

    def __init__(self) -> None:
        self.calls: list[str] = []

    def poll(self) -> int | None:
        return 1 if "kill" in self.calls else None

    def wait(self, seconds: float | None = None) -> int:
        if "kill" not in self.calls:
            raise subprocess.TimeoutExpired("job", seconds or 0)
        return 1

    def terminate(self) -> None:
        self.calls.append("terminate")

    def kill(self) -> None:
        self.calls.append("kill")


def test_a_closed_console_of_windows_ends_a_process_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR2, raising=False)
    monkeypatch.delattr(signal, "SIGTERM")
    before = signal.getsignal(signal.SIGUSR2)
    restore = signals.exit_on_sigterm()
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGUSR2)
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN, "a second one does not interrupt the saving"
    restore()
    assert signal.getsignal(signal.SIGUSR2) is before


def test_processes_are_ended_without_process_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "killpg")
    monkeypatch.delattr(signal, "SIGKILL")
    process = FakeProcess()
    launcher.terminate(process)  # type: ignore[arg-type]
    assert process.calls[:2] == ["terminate", "kill"] and set(process.calls[2:]) <= {"kill"}


def test_a_job_sees_the_death_of_its_launcher_without_polling_a_pipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(10038, "An operation was attempted on something that is not a socket")

    monkeypatch.setattr(job, "CAN_POLL_PIPES", False)
    monkeypatch.setattr(job, "select", SimpleNamespace(select=refuse))
    with FileLock(tmp_path / "owner.lock"):
        assert not job.is_orphaned(tmp_path / "owner.lock")
    assert job.is_orphaned(tmp_path / "owner.lock")


def test_the_readme_says_what_was_run_where() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for word in ("Linux", "macOS", "Windows", "simulated"):
        assert word in text
