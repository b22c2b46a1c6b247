"""Feeds generated and damaged files to the readers: each is read or refused in words, within time and memory.

    python benchmarks/fuzz_readers.py --count 10000 [--seed 0] [--json]

A child process reads the files in turn; its memory is bounded, and the parent ends it when a file takes too
long.
The files are harmless: small, with flipped, cut, doubled and spliced bytes, and of random content.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import multiprocessing
import random
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SECONDS = 30.0  # for one file, on a busy machine
START_SECONDS = 50.0  # for the libraries
MEMORY_BYTES = 4 << 30  # address space of the child
SIZE_LIMIT = 200_000  # bytes of a file
WORDS = [
    "ferry",
    "lake",
    "harbour",
    "dog",
    "ticket",
    "morning",
    "Fähre",
    "Äpfel",
    "Ответ",
    "犬",
    "🚢",
    ",",
    ";",
    "\t",
    '"',
    "'",
    "=",
    "#",
    "---",
    "\n",
]


def make_texts(rng: random.Random, count: int = 8) -> list[str]:
    """Short texts of words and characters with a meaning in some format."""
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(count)]


def make_rows(rng: random.Random) -> list[dict[str, Any]]:
    """Rows in one of some usual forms."""
    texts = make_texts(rng)
    form = rng.randrange(6)
    if form == 0:
        return [{"question": t, "answer": t[::-1]} for t in texts]
    if form == 1:
        return [
            {"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": t}]} for t in texts
        ]
    if form == 2:
        return [{"text": t, "label": rng.choice(["a", "b", 0, None])} for t in texts]
    if form == 3:
        return [{rng.choice("abcdef"): rng.choice([t, 1, 1.5, None, [t], {"x": t}])} for t in texts]
    if form == 4:
        return [{"question": t, "choices": texts[:4], "answer": rng.randrange(4)} for t in texts]
    return [{"a": t, "b": rng.choice(texts), "id": i} for i, t in enumerate(texts)]


def make_jsonl(rng: random.Random) -> bytes:
    return "\n".join(json.dumps(r, ensure_ascii=rng.random() < 0.5) for r in make_rows(rng)).encode()


def make_json(rng: random.Random) -> bytes:
    rows = make_rows(rng)
    value: Any = rng.choice(
        [rows, {"data": rows}, {"a": rows, "b": rows}, {str(i): r for i, r in enumerate(rows)}]
    )
    return json.dumps(value).encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"]))


def make_csv(rng: random.Random) -> bytes:
    import csv

    out = io.StringIO()
    writer = csv.writer(
        out, delimiter=rng.choice(",;\t|"), quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    )
    writer.writerow(rng.choice([["question", "answer"], ["x", "y"], ["text", ""], ["", "q"]]))
    texts = make_texts(rng)
    writer.writerows([[t, rng.choice(texts)] for t in texts])
    return out.getvalue().encode(rng.choice(["utf-8", "utf-8-sig", "utf-16", "cp1252"]), errors="replace")


def make_text(rng: random.Random) -> bytes:
    text = "\n\n".join(
        rng.choice(["", "# ", "## ", "- ", "| ", "```\n", "---\n"]) + t for t in make_texts(rng)
    )
    return text.encode(rng.choice(["utf-8", "utf-16", "utf-16-le", "cp1251", "gb18030"]), errors="replace")


def make_html(rng: random.Random) -> bytes:
    tags = ["p", "h1", "div", "table", "tr", "td", "script", "li", "pre", "br"]
    body = "".join(f"<{(t := rng.choice(tags))}>{text}</{t}>" for text in make_texts(rng))
    return f"<html><head><title>t</title></head><body>{body}</body></html>".encode()


def make_parquet(rng: random.Random) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    rows = [{k: str(v) for k, v in r.items()} for r in make_rows(rng)]
    pq.write_table(pa.Table.from_pylist(rows), out, compression=rng.choice(["none", "snappy", "gzip"]))
    return out.getvalue()


def make_xlsx(rng: random.Random) -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    for number in range(rng.randint(1, 3)):
        sheet = book.create_sheet(f"S{number}")
        sheet.append(rng.choice([["question", "answer"], ["x", "y", "z"], ["Title"]]))
        for text in make_texts(rng):
            clean = "".join(c for c in text if c.isprintable())
            sheet.append([clean, rng.choice([clean, 1, 1.5, True, None, "=1+1"])])
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def make_docx(rng: random.Random) -> bytes:
    paragraphs = "".join(
        f"<w:p><w:r><w:t>{t.translate({60: 32, 38: 32})}</w:t></w:r></w:p>" for t in make_texts(rng)
    )
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    return make_parts({
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        f'<Override PartName="/word/document.xml" ContentType="{kind}"/></Types>',
        "word/document.xml": f"<w:document {space}><w:body>{paragraphs}</w:body></w:document>",
    })  # fmt: skip


def make_epub(rng: random.Random) -> bytes:
    return make_parts({
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
        '<rootfiles>'
        '<rootfile full-path="a.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        "a.opf": '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="c" href="c.xhtml" '
        'media-type="application/xhtml+xml"/></manifest><spine><itemref idref="c"/></spine></package>',
        "c.xhtml": make_html(rng).decode(),
    })  # fmt: skip


def make_parts(parts: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, text in parts.items():
            z.writestr(name, text)
    return out.getvalue()


def make_pdf(rng: random.Random) -> bytes:
    lines = "".join(f"({t.encode('ascii', 'replace').decode()}) Tj T* " for t in make_texts(rng))
    stream = f"BT /F1 12 Tf 14 TL 72 720 Td {lines} ET".encode("ascii", "replace")
    return (
        b"%%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
        b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R"
        b"/Resources<</Font<</F1 5 0 R>>>>>>"
        b"endobj\n4 0 obj<</Length %d>>stream\n%s\nendstream endobj\n5 0 obj<</Type/Font/Subtype/Type1"
        b"/BaseFont/Helvetica>>endobj\ntrailer<</Root 1 0 R>>\n%%%%EOF" % (len(stream), stream)
    )


MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    ".jsonl": make_jsonl, ".json": make_json, ".csv": make_csv, ".tsv": make_csv, ".txt": make_text,
    ".md": make_text, ".rst": make_text, ".html": make_html, ".parquet": make_parquet, ".xlsx": make_xlsx,
    ".docx": make_docx, ".epub": make_epub, ".pdf": make_pdf,
}  # fmt: skip


def damage(data: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, doubles, fills or splices parts of a file."""
    out = bytearray(data)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 8, 40])):
        if not out:
            break
        at, to = sorted((rng.randrange(len(out)), rng.randrange(len(out))))
        how = rng.randrange(7)
        if how == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del out[at : min(to, at + rng.choice([1, 20, 2000]))]
        elif how == 2:
            out[at:at] = out[at:to][:5000]
        elif how == 3:
            out[at : at + 8] = rng.choice(
                [b"\0" * 8, b"\xff" * 8, b"</w:t>", b'"', b"\r\n", b"{", b"]", b"\xe4"]
            )
        elif how == 4:
            del out[at:]
        elif how == 5:
            out[at:at] = rng.randbytes(rng.choice([1, 4, 64]))
        else:
            out[at:at] = rng.choice(
                [b"PK\x03\x04", b"\xef\xbb\xbf", b"\xff\xfe", b"<!DOCTYPE x>", b"nan", b"1e999"]
            )
    return bytes(out[:SIZE_LIMIT])


def make_file(number: int, seed: int, without: tuple[str, ...] = ()) -> tuple[str, bytes]:
    """Makes the file of a number: its name and content, always the same; not in the formats `without`."""
    rng = random.Random(f"{seed}:{number}")
    suffix = rng.choice([s for s in MAKERS if s not in without])
    kind = rng.randrange(10)
    data = rng.randbytes(rng.choice([1, 50, 5000])) if kind == 0 else MAKERS[suffix](rng)
    if kind < 7:
        data = damage(data, rng)
    if kind == 8 and suffix not in (".docx", ".epub", ".pdf"):
        return f"f{number}{suffix}.gz", damage(gzip.compress(data, mtime=0), rng)
    if kind == 9:
        return f"f{number}.zip", damage(make_zip(suffix, data), rng)
    return f"f{number}{suffix}", data


def make_zip(suffix: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(f"folder/a{suffix}", data)
        z.writestr("../b.txt", "x")
        z.writestr("c.txt", data[:100])
    return out.getvalue()


def read_file(path: Path) -> str:
    """Reads a file as an import does: "read", "refused", or what went wrong."""
    from core.data.formats.readers import read_files
    from core.data.reading import read_rows
    from core.errors import DataError

    try:
        reading = read_rows(read_files([path]))
    except DataError as e:
        return "refused" if e.what and e.fix else f"an error without a remedy: {e}"
    except Exception as e:  # noqa: BLE001 # what this program looks for
        return f"{type(e).__name__}: {e}"
    return "read" if reading.problem is None else "refused"


def serve(connection: Connection, folder: str) -> None:
    """The child: reads the file of each number that it receives."""
    tempfile.tempdir = str(Path(folder) / "temp")
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):
        pass  # not a Unix system
    while (path := connection.recv()) is not None:
        connection.send(read_file(Path(path)))


def fuzz(
    count: int, seed: int, folder: Path, without: tuple[str, ...] = ()
) -> tuple[Counter[str], list[str]]:
    """Feeds files to a child process, which is started again when it ends.

    Returns:
        How many were read and refused; what went wrong, one line per file.
    """
    (folder / "temp").mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    results: Counter[str] = Counter()
    failures: list[str] = []
    child, connection, seconds = None, None, SECONDS
    for number in range(count):
        if child is None or connection is None:
            connection, other = context.Pipe()
            child = context.Process(target=serve, args=(other, str(folder)), daemon=True)
            child.start()
            other.close()
            seconds = START_SECONDS + SECONDS  # the first file waits for the libraries
        name, data = make_file(number, seed, without)
        path = folder / name
        path.write_bytes(data)
        connection.send(str(path))
        result = "took too long"
        try:
            if connection.poll(seconds):
                result = connection.recv()
            seconds = SECONDS
        except (EOFError, OSError):
            result = "the process ended"
        if result not in ("read", "refused"):
            failures.append(f"{name}: {result}")
            if result in ("took too long", "the process ended"):
                child.kill()
                child, connection = None, None
        results[result if result in ("read", "refused") else "failed"] += 1
        path.unlink()
    if connection is not None and child is not None:
        connection.send(None)
        child.join(5)
    if left := [p.name for p in (folder / "temp").iterdir()]:
        failures.append(f"left in the temporary folder: {', '.join(left[:5])}")
    return results, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        results, failures = fuzz(args.count, args.seed, Path(folder))
    seconds = round(time.monotonic() - start, 1)
    if args.json:
        print(json.dumps({"files": args.count, **results, "seconds": seconds, "failures": failures}))
    else:
        print(f"{args.count:,} files in {seconds} s: {dict(results)}")
        print("\n".join(failures[:50]))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
