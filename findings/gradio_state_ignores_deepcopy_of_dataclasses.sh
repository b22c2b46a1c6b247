#!/usr/bin/env bash
# gradio 6.31.0: a page with gr.State whose value is a dataclass with its own __deepcopy__ cannot be built for the browser.
#
# gr.State takes "a value of arbitrary type, as long as it can be deepcopied", and each session gets a deep copy of it. The
# value itself is never sent to the browser, but for the page's config it is first converted with dataclasses.asdict, which
# ignores the __deepcopy__ of the class and copies every field one by one, and only then removed. So a session object that
# makes a new one of itself for each visitor, and holds a lock, an open file or a thread beside its data, works as a plain
# class and fails as a dataclass: at the end of `with gradio.Blocks()`, far from the line with the state. A lock that is set in
# __post_init__, and is no field, is a way out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet gradio==6.31.0
cd "$folder"
GRADIO_ANALYTICS_ENABLED=False venv/bin/python - <<'PYTHON'
import copy
import dataclasses
import importlib.metadata as metadata
import threading

import gradio


@dataclasses.dataclass
class Session:
    count: int = 0
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def __deepcopy__(self, memo):
        return Session(self.count)


class PlainSession:
    def __init__(self, count=0):
        self.count, self.lock = count, threading.Lock()

    def __deepcopy__(self, memo):
        return PlainSession(self.count)


def build(value):
    try:
        with gradio.Blocks() as page:
            gradio.State(value)
        (component,) = [c for c in page.get_config_file()["components"] if c["type"] == "state"]
        return "value" in component["props"]
    except TypeError as error:
        return str(error)


assert copy.deepcopy(Session(3)).count == 3, "it can be deepcopied"
plain, seen = build(PlainSession()), build(Session())
print(f"gradio {metadata.version('gradio')}: plain class: value sent: {plain}; dataclass: {seen}")
assert plain is False and "cannot pickle '_thread.lock' object" in seen
PYTHON
