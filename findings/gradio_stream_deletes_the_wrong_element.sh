#!/usr/bin/env bash
# gradio 6.31.0 and gradio-client 2.7.2: a streamed value that loses elements in two lists arrives as another value.
#
# A generator sends its first value whole, and then the edits that make the next value of the one before
# (gradio.utils.diff). For a deletion in a list, diff subtracts the number of deletions before it, because they
# shift the indices. It also counts deletions in other lists of the same value, which shift nothing. A handler
# that yields two columns with three lines each, and then with two each, has a client that sees [1, 2] and [4, 6]
# in place of [1, 2] and [4, 5]; with more columns the edit may hit no element, which ends the stream. A value
# whose lists only grow, such as a chat, is not concerned. Nested results that shrink have to be sent whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet gradio==6.31.0
cd "$folder"
GRADIO_ANALYTICS_ENABLED=False venv/bin/python - <<'PYTHON'
import importlib.metadata as metadata

import gradio
from gradio import utils
from gradio_client import Client
from gradio_client.utils import apply_diff

FIRST = [{"lines": [1, 2, 3]}, {"lines": [4, 5, 6]}]
SECOND = [{"lines": [1, 2]}, {"lines": [4, 5]}]


def show():
    yield FIRST
    yield SECOND


assert apply_diff([1, 2, 3], utils.diff([1, 2, 3], [1])) == [1], "one list alone is right"
with gradio.Blocks() as page:
    output = gradio.JSON()
    gradio.Button().click(show, None, output, api_name="show")
_, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
job = Client(address, verbose=False).submit(api_name="/show")
job.result()
seen = job.outputs()
page.close()
versions = f"gradio {metadata.version('gradio')}, gradio-client {metadata.version('gradio-client')}"
print(f"{versions}: sent {SECOND}, seen {seen[-1]}; edits {utils.diff(FIRST, SECOND)}")
assert seen[0] == FIRST and seen[-1] == [{"lines": [1, 2]}, {"lines": [4, 6]}]
PYTHON
