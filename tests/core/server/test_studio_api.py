"""The REST API against a live server: uploads, runs with their events, adapters, mixes, answers, reports."""

from __future__ import annotations

import io
import json
import socket
import tempfile
import time
import zipfile
from pathlib import Path

import httpx
import pytest

from core.engine import Engine
from core.server import studio_api_datasets
from core.server.access import Principal, Role
from core.server.studio_api_uploads import PREFIX as UPLOAD_PREFIX

from ...conftest import SENTENCES
from .live_server import serve

pytestmark = pytest.mark.slow
TINY = {"epochs": 1, "batch_size": 8, "accumulation": 1, "max_length": 64, "rank": 4, "replay_share": 0}
TEXT = "\n\n---\n\n".join(SENTENCES[:48]).encode()


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory):
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), quantization="none", device="cpu") as made:
        made.bases.current(wait=True)
        yield made


@pytest.fixture(scope="module")
def client(engine):
    with serve(engine) as url, httpx.Client(base_url=url, timeout=120) as made:
        yield made


def upload(client, files, **fields) -> dict:
    """Uploads files, and returns the state of the import at its end."""
    sent = [("files", (name, content)) for name, content in files]
    response = client.post("/api/datasets", files=sent, data=fields)
    assert response.status_code == 202, response.text
    job = response.json()
    deadline = time.monotonic() + 120
    while job["state"] in ("waiting", "running") and time.monotonic() < deadline:
        time.sleep(0.1)
        job = client.get(f"/api/imports/{job['id']}").json()
    return job


def wait_for_run(client, run_id: str) -> dict:
    deadline = time.monotonic() + 300
    while (run := client.get(f"/api/runs/{run_id}").json())["status"] in ("queued", "running", "stopping"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return run


@pytest.fixture(scope="module")
def dataset(client) -> str:
    return upload(client, [("corpus.txt", TEXT)], name="Corpus")["dataset"]


@pytest.fixture(scope="module")
def run(client, dataset) -> dict:
    settings = {"name": "Notes", "dataset": dataset, **TINY}
    response = client.post("/api/runs", json={"kind": "domain", "preset": "standard", "settings": settings})
    assert response.status_code == 202, response.text
    return wait_for_run(client, response.json()["id"])


# --- datasets


def test_an_upload_becomes_a_dataset_with_its_rows(client, dataset):
    shown = client.get(f"/api/datasets/{dataset}").json()
    assert (shown["name"], shown["kind"], shown["rows"]) == ("Corpus", "domain", 48)
    assert sum(shown["splits"].values()) == 48
    assert dataset in [d["id"] for d in client.get("/api/datasets").json()]
    page = client.get(f"/api/datasets/{dataset}/rows", params={"split": "all", "offset": 46}).json()
    assert len(page["rows"]) == 2 and page["total"] == 48


def test_an_upload_leaves_no_temporary_files(client, dataset, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other tests have uploads at the same time
    folder = Path(tempfile.gettempdir())
    before = set(folder.glob(f"{UPLOAD_PREFIX}*"))
    assert upload(client, [("a.txt", TEXT), ("b.txt", TEXT)], name="Two")["state"] == "done"
    deadline = time.monotonic() + 10
    while set(folder.glob(f"{UPLOAD_PREFIX}*")) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(folder.glob(f"{UPLOAD_PREFIX}*")) - before


def test_roles_and_kind_of_an_upload_are_chosen(client):
    rows = [{"q": f"Where is it, {i}?", "a": f"In room {i}.", "x": i} for i in range(20)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    roles = json.dumps({"question": "q", "answer": "a"})
    job = upload(client, [("t.jsonl", content)], name="Asked", kind="task", roles=roles)
    shown = client.get(f"/api/datasets/{job['dataset']}").json()
    assert (shown["kind"], shown["roles"], shown["rows"]) == ("task", {"question": "q", "answer": "a"}, 20)


def test_an_import_that_fails_says_why(client):
    job = upload(client, [("broken.jsonl", b'{"text": "a"}\n{"text": \n')])
    assert job["state"] == "failed" and "line 2" in job["problem"] and job["dataset"] == ""


@pytest.mark.parametrize(
    "name, fields, field",
    [
        ("corpus.txt", {"roles": "[1]"}, "roles"),
        ("corpus.txt", {"roles": "{"}, "roles"),
        ("..", {}, "files"),
        ("a" * 130 + ".txt", {}, "files"),
        ("corpus.txt", {"seed": "-1"}, "seed"),
        ("corpus.txt", {"kind": "image"}, "kind"),
    ],
)
def test_an_upload_that_cannot_be_read_is_refused_at_once(client, name, fields, field):
    response = client.post("/api/datasets", files=[("files", (name, TEXT))], data=fields)
    assert response.status_code == 422, response.text
    assert response.json()["field"] == field


def test_an_upload_above_the_limit_is_refused_and_leaves_nothing(client, engine, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other tests have uploads at the same time
    monkeypatch.setattr(studio_api_datasets, "UPLOAD_LIMIT", 10_000)
    before = (len(engine.datasets.list()), set(Path(tempfile.gettempdir()).glob(f"{UPLOAD_PREFIX}*")))
    response = client.post("/api/datasets", files=[("files", ("a.txt", b"x" * 20_000))])
    assert response.status_code == 413 and "at most 10,000 bytes" in response.json()["title"]
    after = (len(engine.datasets.list()), set(Path(tempfile.gettempdir()).glob(f"{UPLOAD_PREFIX}*")))
    assert before == after


def test_a_caller_without_the_role_is_refused_before_the_body_is_read(engine):
    with serve(engine, AsRole(Role.VIEWER)) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as s:
            head = "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: {}\r\nContent-Length: 900000000\r\n\r\n"
            s.sendall(head.format("/api/datasets", "multipart/form-data; boundary=a").encode())
            assert s.recv(100).startswith(b"HTTP/1.1 403")
        with socket.create_connection((host, int(port)), timeout=20) as s:
            s.sendall(head.format("/fine-tuning/setup", "application/json").encode())
            assert s.recv(100).startswith(b"HTTP/1.1 403")


def test_a_file_name_never_leaves_the_folder_of_its_upload(client, engine):
    job = upload(client, [("../../../evil.txt", TEXT)], name="Named")
    record = engine.datasets.get(job["dataset"])
    assert record.files[0]["name"] == "evil.txt"


# --- runs


def test_a_run_starts_with_the_settings_of_the_request(run, dataset):
    assert (run["name"], run["status"], run["dataset"]) == ("Notes", "finished", dataset)
    assert run["step"] == run["total_steps"] > 0
    assert {k: run["settings"][k] for k in TINY} == TINY
    assert run["settings"]["learning_rate"] == 2e-4


def test_events_are_read_by_cursor_without_gaps(client, run):
    path = f"/api/runs/{run['id']}/events"
    first = client.get(path).json()
    assert {"status", "step", "result"} <= {e["kind"] for e in first["events"]}
    again = client.get(path, params={"after": first["cursor"]}).json()
    assert again == {"events": [], "cursor": first["cursor"]}
    assert client.get(path, params={"after": -1}).status_code == 422


def read_frames(client, run_id, headers=None, limit=10_000, **params) -> list[dict]:
    frames: list[dict] = []
    with client.stream("GET", f"/api/runs/{run_id}/stream", headers=headers, params=params) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        frame: dict = {}
        for line in response.iter_lines():
            if not line and frame:
                frames.append(frame)
                frame = {}
                if len(frames) == limit or frames[-1].get("event") == "end":
                    break
            elif not line.startswith(":"):
                name, _, value = line.partition(": ")
                frame[name] = value
    return frames


def test_a_stream_that_is_cut_anywhere_continues_without_loss(client, run):
    whole = read_frames(client, run["id"])
    events = client.get(f"/api/runs/{run['id']}/events").json()["events"]
    assert [json.loads(f["data"]) for f in whole[:-1]] == events
    assert json.loads(whole[-1]["data"]) == {"status": "finished", "adapter": run["adapter"]}
    for cut in range(1, len(whole), 3):
        rest = read_frames(client, run["id"], headers={"Last-Event-ID": whole[cut - 1]["id"]})
        assert [f["data"] for f in rest] == [f["data"] for f in whole[cut:]], f"cut at {cut}"


def test_a_stream_follows_a_run_that_trains_and_stops(client, dataset):
    settings = {"name": "Long", "dataset": dataset, **TINY, "epochs": 500}
    body = {"kind": "domain", "preset": "standard", "settings": settings}
    run_id = client.post("/api/runs", json=body).json()["id"]
    frames = read_frames(client, run_id, limit=6)
    assert len(frames) == 6 and frames[0]["event"] == "status"
    stopped = client.post(f"/api/runs/{run_id}/stop")
    assert stopped.status_code == 200
    rest = read_frames(client, run_id, headers={"Last-Event-ID": frames[-1]["id"]})
    assert rest[-1]["event"] == "end" and wait_for_run(client, run_id)["status"] == "stopped"
    assert client.post(f"/api/runs/{run_id}/stop").status_code == 409


def test_a_run_is_paused_and_resumed(client, dataset):
    settings = {"name": "Pause", "dataset": dataset, **TINY, "epochs": 500}
    body = {"kind": "domain", "preset": "standard", "settings": settings}
    run_id = client.post("/api/runs", json=body).json()["id"]
    while client.get(f"/api/runs/{run_id}").json()["step"] < 2:
        time.sleep(0.1)
    assert client.post(f"/api/runs/{run_id}/pause").status_code == 200
    paused = wait_for_run(client, run_id)
    assert paused["status"] == "paused" and paused["resumable"]
    assert client.post(f"/api/runs/{run_id}/resume").status_code == 200
    client.post(f"/api/runs/{run_id}/stop")
    assert wait_for_run(client, run_id)["step"] >= paused["step"]


@pytest.mark.parametrize(
    "changes, status, field",
    [
        ({"rank": 0}, 422, "settings.rank"),
        ({"rank": "8"}, 422, "settings.rank"),
        ({"ranks": 8}, 422, "settings.ranks"),
        ({"dataset": "gone"}, 404, None),
        ({"name": "a/b"}, 422, "name"),
        ({"max_length": 4096}, 422, "max_length"),
    ],
)
def test_a_run_with_a_wrong_setting_is_refused_by_name(client, dataset, changes, status, field):
    settings = {"name": "Wrong", "dataset": dataset, **TINY, **changes}
    response = client.post("/api/runs", json={"kind": "domain", "preset": "standard", "settings": settings})
    assert (response.status_code, response.json().get("field")) == (status, field), response.text


@pytest.mark.parametrize("place", ["x", "-1", "1-", "9" * 30])
def test_a_place_that_no_event_has_is_refused(client, run, place):
    response = client.get(f"/api/runs/{run['id']}/stream", headers={"Last-Event-ID": place})
    assert response.status_code == 422 and response.json()["field"] == "after"


# --- adapters, mixes, answers


def test_an_adapter_is_listed_and_downloaded_whole(client, engine, run):
    listed = {a["id"]: a for a in client.get("/api/adapters").json()}
    assert listed[run["adapter"]]["fits"] and listed[run["adapter"]]["rank"] == 4
    response = client.get(f"/api/adapters/{run['adapter']}/download")
    with zipfile.ZipFile(io.BytesIO(response.content)) as z:
        weights = z.read(f"{run['adapter']}/adapter_model.safetensors")
    assert (
        weights
        == (engine.workspace.path("adapters", run["adapter"]) / "adapter_model.safetensors").read_bytes()
    )


def test_a_mix_is_saved_used_and_deleted(client, run):
    saved = client.post("/api/mixes", json={"name": "Half", "mix": "Notes=0.5@1"})
    assert saved.status_code == 201, saved.text
    mix = saved.json()
    assert mix["weights"] == {run["adapter"]: 0.5} and mix["tilt"] == {run["adapter"]: 1.0}
    body = {"prompt": "Where?", "mixes": ["Half", mix["text"]], "sampling": {"max_new_tokens": 4}}
    columns = client.post("/api/compare", json=body).json()["columns"]
    assert columns[0]["text"] == columns[1]["text"]
    assert client.delete(f"/api/mixes/{mix['id']}").json()["deleted"] == mix["id"]
    assert client.get(f"/api/mixes/{mix['id']}").status_code == 404
    assert client.post("/api/compare", json=body).status_code == 404


def test_mixes_answer_side_by_side_as_json_and_as_events(client, run):
    body = {
        "prompt": [{"role": "user", "content": "Where is the red lamp?"}],
        "mixes": ["base", "Notes", "Notes=-1"],
        "sampling": {"max_new_tokens": 8, "temperature": 0.7, "seed": 3},
    }
    whole = client.post("/api/compare", json=body).json()
    assert whole["done"] and [c["mix"] for c in whole["columns"]] == body["mixes"]
    assert all(0 < c["tokens"] <= 8 for c in whole["columns"])
    response = client.post("/api/compare/stream", json=body)
    blocks = [block.split("\n") for block in response.text.strip().split("\n\n")]
    assert blocks[-1][0] == "event: end"
    last = json.loads(blocks[-2][1].removeprefix("data: "))
    assert [c["text"] for c in last["columns"]] == [c["text"] for c in whole["columns"]]


@pytest.mark.parametrize("path", ["/api/compare", "/api/compare/stream"])
def test_a_prompt_that_is_too_long_is_a_problem(client, path):
    response = client.post(path, json={"prompt": "lamp " * 4000, "mixes": ["base"]})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert "at most" in response.json()["title"]


@pytest.mark.parametrize("mix", ["Notes=nan", "Notes=inf", "Notes=3", "Notes=1,Notes=1", "nothing", "=1"])
def test_a_mix_that_cannot_be_read_is_a_problem(client, run, mix):
    response = client.post("/api/compare", json={"prompt": "Where?", "mixes": [mix]})
    assert response.status_code == (404 if mix == "nothing" else 422), response.text


def test_an_evaluation_runs_in_the_background_to_its_report(client, dataset, run):
    body = {"dataset": dataset, "mixes": ["base", "Notes"], "limit": 2, "general": False}
    started = client.post("/api/evaluations", json=body)
    assert started.status_code == 202
    job = started.json()
    deadline = time.monotonic() + 120
    while job["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
        job = client.get(f"/api/evaluations/{job['id']}").json()
    assert job["state"] == "done", job
    report = client.get(f"/api/reports/{job['report']}").json()
    assert [row["name"] for row in report["rows"]] == ["base", "Notes"]
    assert all(row["perplexity"] > 1 for row in report["rows"])
    assert client.delete(f"/api/evaluations/{job['id']}").json()["state"] == "done"


def test_an_evaluation_that_cannot_be_started_says_why(client, dataset):
    response = client.post("/api/evaluations", json={"dataset": "gone", "mixes": ["base"]})
    assert response.status_code == 404
    assert client.get("/api/evaluations/evaluation-0").status_code == 404


def test_a_deleted_adapter_is_gone_and_in_the_trash(client, engine, dataset):
    settings = {"name": "Brief", "dataset": dataset, **TINY, "max_steps": 1}
    body = {"kind": "domain", "preset": "standard", "settings": settings}
    adapter = wait_for_run(client, client.post("/api/runs", json=body).json()["id"])["adapter"]
    deleted = client.delete(f"/api/adapters/{adapter}").json()
    assert client.get(f"/api/adapters/{adapter}").status_code == 404
    assert deleted["entry"] in [item.entry for item in engine.library.trash()]


# --- roles


class AsRole:
    def __init__(self, role: Role) -> None:
        self.role = role

    def identify(self, request) -> Principal:
        return Principal("somewhere", self.role)


ROUTES = {
    Role.VIEWER: [
        ("GET", "/api/base"), ("GET", "/api/datasets"), ("GET", "/api/runs"), ("GET", "/api/adapters"),
        ("GET", "/api/mixes"), ("GET", "/api/reports"), ("POST", "/api/compare"), ("GET", "/openapi.json"),
        ("POST", "/api/mixes"), ("GET", "/api/runs/x/stream"), ("POST", "/api/evaluations"),
    ],
    Role.TRAINER: [
        ("POST", "/api/datasets"), ("POST", "/api/runs"), ("POST", "/api/runs/x/stop"),
        ("POST", "/api/runs/x/pause"), ("POST", "/api/runs/x/resume"), ("GET", "/api/imports/x"),
    ],
    Role.OWNER: [
        ("DELETE", "/api/datasets/x"), ("DELETE", "/api/adapters/x"), ("DELETE", "/api/mixes/x"),
        ("GET", "/api/adapters/x/download"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("role", list(Role))
def test_every_route_refuses_lower_roles_before_it_does_anything(engine, role):
    with serve(engine, AsRole(role)) as url:
        for needed, routes in ROUTES.items():
            for method, path in routes:
                status = httpx.request(method, url + path, timeout=30).status_code
                refused = 401 if role is Role.NONE else 403
                assert (status == refused) == (role < needed), f"{role} {method} {path}: {status}"
