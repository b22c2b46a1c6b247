"""The process that calls llama.cpp's own quantizer in a native library; it imports nothing of the studio.

    python native_quantizer.py LIBRARY
    parent ─ stdin: (number of the type, rows, values of a row, bytes of a row) and float32 values ─> child
    child ─ stdout: the quantized rows ─> parent                                   until stdin ends

`core.gguf.quantization` starts it, so that an error in the library ends this process only.
"""

from __future__ import annotations

import ctypes
import struct
import sys

REQUEST = struct.Struct("<IQQQ")


def load_function(library: str) -> ctypes._NamedFuncPointer:
    """`ggml_quantize_chunk` of a library.

    Raises:
        OSError, AttributeError: the library cannot be loaded, or has no such function.
    """
    function = ctypes.CDLL(library).ggml_quantize_chunk
    count = ctypes.c_int64
    pointers = (ctypes.c_void_p, ctypes.c_void_p)
    function.argtypes = [ctypes.c_int, *pointers, count, count, count, ctypes.c_void_p]
    function.restype = ctypes.c_size_t
    return function


def main() -> None:
    """Answers requests until standard input ends; ends with code 3 where the library cannot be used."""
    try:
        quantize = load_function(sys.argv[1])
    except (OSError, AttributeError):
        sys.exit(3)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(REQUEST.size)) == REQUEST.size:
        kind, rows, width, row_bytes = REQUEST.unpack(head)
        values = source.read(rows * width * 4)
        if len(values) != rows * width * 4:
            sys.exit(4)
        result = ctypes.create_string_buffer(rows * row_bytes)
        if quantize(kind, values, result, 0, rows, width, None) != rows * row_bytes:
            sys.exit(5)
        target.write(result.raw)
        target.flush()


if __name__ == "__main__":
    main()
