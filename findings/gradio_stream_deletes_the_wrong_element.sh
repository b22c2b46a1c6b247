#!/usr/bin/env bash
# gradio 6.31.0 and gradio-client 2.7.2: a streamed value that loses elements in two lists arrives as another value.
#
# A generator sends its first value whole, and then the edits that make the next value of the one before
# (gradio.utils.diff). For a deletion in a list, diff subtracts the number of deletions before it, because they
# shift the indices. It also counts deletions in other lists of the same value, which shift nothing. Of two columns
# with three lines each that lose the last one, the edits delete the third line of the first column and the *second*
# of the other: whoever applies them, as gradio_client.utils.apply_diff and the browser do, shows [1, 2] and [4, 6]
# for [1, 2] and [4, 5] until the stream ends, and later edits are relative to what it does not have. Components
# whose value is any JSON (gr.HTML with a template) are concerned; values whose lists only grow are not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet gradio==6.31.0 gradio-client==2.7.2
cd "$folder"
GRADIO_ANALYTICS_ENABLED=False venv/bin/python - <<'PYTHON'
import importlib.metadata as metadata
import json

import gradio
import httpx
from gradio import utils
from gradio_client.utils import apply_diff

FIRST = [{"lines": [1, 2, 3]}, {"lines": [4, 5, 6]}]
SECOND = [{"lines": [1, 2]}, {"lines": [4, 5]}]


def show():
    yield FIRST
    yield SECOND


assert apply_diff([1, 2, 3], utils.diff([1, 2, 3], [1])) == [1], "one list alone is right"
with gradio.Blocks() as page:
    output = gradio.HTML(value=[], html_template="<p>${JSON.stringify(value)}</p>")
    gradio.Button().click(show, None, output)
_, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
streamed = []
with httpx.Client(base_url=address, timeout=60) as http:
    http.post("gradio_api/queue/join", json={"data": [], "fn_index": 0, "session_hash": "page"}).raise_for_status()
    with http.stream("GET", "gradio_api/queue/data", params={"session_hash": "page"}) as response:
        for line in response.iter_lines():
            message = json.loads(line[5:]) if line.startswith("data:") else {}
            if message.get("msg") == "process_generating":
                streamed += message["output"]["data"]
page.close()
first, edits = streamed
seen = apply_diff(first, edits)
versions = f"gradio {metadata.version('gradio')}, gradio-client {metadata.version('gradio-client')}"
print(f"{versions}: yielded {SECOND}, seen {seen}; edits {edits}")
assert first == FIRST and seen == [{"lines": [1, 2]}, {"lines": [4, 6]}]
PYTHON
