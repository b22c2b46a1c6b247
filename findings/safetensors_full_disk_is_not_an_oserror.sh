#!/usr/bin/env bash
# safetensors 0.8.0: a write that the system refuses.
#
# save_file raises SafetensorError, which is not an OSError and has no errno, for every refusal of the system, also
# for a full disk (os error 28). The number stands in the text only. Code that catches OSError and looks at errno
# to recognise a full disk, as one does around open() and write(), never sees it. Here a limit on the size of files
# stands for the full disk, because it needs no privileges: its number is 27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
(
    ulimit -f 64 # blocks of 1024 bytes
    FOLDER="$folder" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import os

import numpy
from safetensors.numpy import save_file

path = os.path.join(os.environ["FOLDER"], "weights.safetensors")
try:
    save_file({"a": numpy.zeros(100_000)}, path)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
    print(f"OSError: {isinstance(error, OSError)}, errno: {getattr(error, 'errno', 'none')}")
    assert not isinstance(error, OSError) and not hasattr(error, "errno")
    assert "(os error 27)" in str(error), error
else:
    raise SystemExit("the file was written")
assert not os.path.exists(path)
try:
    with open(path, "wb") as f:
        f.write(bytes(800_000))
except OSError as error:
    print(f"open().write() of the same size: {type(error).__name__}, errno {error.errno}")
    assert error.errno == 27
else:
    raise SystemExit("the limit did not hold")
PYTHON
)
