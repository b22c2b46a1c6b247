"""Evidence: what retrieval finds, and how fast.

    python -m benchmarks.evidence [PART ...]    all parts, or those that are named
    python -m benchmarks.evidence --quick       20,000 chunks instead of 100,000
    python -m benchmarks.evidence matrix --cache FOLDER    continues where an earlier call was interrupted
    python -m benchmarks.evidence --json        the last line is one JSON object

retrieval: a dataset of our own: entries of parts with a number each, stories and letters of invented people,
and the passages of `paraphrases.jsonl`. Its questions ask for exact part numbers, or for a passage without
using one content word of it, which `find_shared_words` checks. Indexing is the whole job of
`engine.retrieval`, with its process; a query is one call of `engine.retrieval.search`. Recall counts without
a threshold, and for paraphrases also with the default one. CPU times tell more than wall times where other
programs run. The figures are those of words alone, and, where wordllama is installed, with it.
matrix: what training and retrieval add on held-out questions (`benchmarks.evidence_matrix`).
rows: what the adapters cost in the batch of four rows (`benchmarks.evidence_rows`); one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import random
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARAPHRASES = Path(__file__).with_name("paraphrases.jsonl")
CHUNKS, QUICK_CHUNKS = 100_000, 20_000
PART_QUESTIONS = 300
PASSAGES = 5  # the 5 of recall@5
# Questions about things that none of the documents holds.
ELSEWHERE = (
    "Who wrote the symphony about the planets?",
    "How do I renew a driving licence in Canada?",
    "What is the boiling point of ethanol?",
    "Which programming language has goroutines?",
    "When did the French Revolution begin?",
    "How many bones has a giraffe in its neck?",
    "What does the Higgs boson do?",
    "Which enzyme digests lactose?",
    "How is compound interest computed?",
    "Who painted the ceiling of the Sistine Chapel?",
)
TEXT_LIMIT = 590  # characters of a text, so that it is one chunk

# --- paraphrases without a word in common

# Articles, pronouns, prepositions, conjunctions, auxiliaries, question words: they name nothing.
_FUNCTION_TEXT = (
    "a about above after again against all also although am an and any anyone are as at away be "
    "because been before behind being below between both but by can cannot could did do does doing down "
    "during each either else every few for from had has have having he her here herself him himself his "
    "how i if in instead into is it its itself just many may me mine more most much must my no "
    "not nothing of off on once one only onto or other our out over own per quite rather same shall she "
    "should since so some still such than that the their them then there these they this those "
    "though through to together too under unless until up upon us very was we were what whatever when "
    "where which while who whom whose why will with within without would yes yet you your"
)
FUNCTION_WORDS = frozenset(_FUNCTION_TEXT.split())
ENDINGS = ("ingly", "edly", "ings", "ing", "ers", "er", "ies", "ied", "ed", "es", "ly", "s", "y", "e")
BEGINNING = 5


def list_content_words(text: str) -> set[str]:
    """The words of a text that name something."""
    words = re.findall(r"[a-z0-9]+", text.lower().replace("'s", ""))
    return set(words) - FUNCTION_WORDS


def find_stem(word: str) -> str:
    """A word without its ending; at least three letters stay."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def find_shared_words(passage: str, question: str) -> set[str]:
    """The content words of a question that a passage has too: whole, by their stem, or by five letters."""

    def keys(word: str) -> set[str]:
        return {word, find_stem(word), *([f"{word[:BEGINNING]}*"] if len(word) >= BEGINNING else [])}

    known = {key for word in list_content_words(passage) for key in keys(word)}
    return {word for word in list_content_words(question) if keys(word) & known}


def read_paraphrases() -> list[tuple[str, str]]:
    """The passages and their questions.

    Raises:
        ValueError: a question shares a content word with its passage.
    """
    rows = [json.loads(line) for line in PARAPHRASES.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if shared := find_shared_words(row["passage"], row["question"]):
            raise ValueError(f"{row['question']!r} shares {sorted(shared)} with its passage")
    return [(row["passage"], row["question"]) for row in rows]


# --- the documents

NOUNS = [
    "valve",
    "pump",
    "bearing",
    "gasket",
    "relay",
    "sensor",
    "coupling",
    "filter",
    "spring",
    "nozzle",
    "belt",
    "gear",
    "switch",
    "seal",
    "hose",
]
KINDS = [
    "hydraulic",
    "rotary",
    "thermal",
    "brass",
    "dual-stage",
    "marine",
    "compact",
    "heavy-duty",
    "sealed",
    "modular",
    "magnetic",
    "steel",
]
MAKERS = [
    "Wren & Sons",
    "Fjordwerk",
    "Oak Mill",
    "Petrel Works",
    "Brandt",
    "Larkmouth Foundry",
    "Tern Metals",
    "Asher Brothers",
]
USES = [
    "the cooling circuit",
    "the loading crane",
    "the bilge pump",
    "the winch",
    "the boiler feed",
    "the paper line",
    "the lift",
    "the conveyor",
    "the wind vane",
    "the ballast tank",
    "the bottling line",
    "the sluice gate",
]


@dataclass(frozen=True)
class Part:
    """A part of the catalogue; `number` is unique."""

    number: str
    torque: int
    shelf: str
    text: str


def draw_parts(rng: random.Random, count: int) -> list[Part]:
    """Draws catalogue entries; most name the number of another part, too."""
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    numbers: dict[str, None] = {}
    while len(numbers) < count:
        pair = rng.choice(letters) + rng.choice(letters)
        numbers[f"{pair}-{rng.randrange(10_000, 100_000)}-{rng.choice(letters)}"] = None
    known = list(numbers)
    return [_draw_part(rng, number, rng.choice(known)) for number in known]


def _draw_part(rng: random.Random, number: str, other: str) -> Part:
    noun, torque, shelf = (
        rng.choice(NOUNS),
        rng.randrange(4, 180),
        f"{rng.randrange(1, 60)}-{rng.choice('ABCDEF')}",
    )
    sentences = [
        f"Tighten it with {torque} Nm.",
        f"It is kept on shelf {shelf}.",
        f"{rng.choice(MAKERS)} makes it for {rng.choice(USES)}.",
        f"It replaces {other}." if rng.random() < 0.7 else "It replaces no other part.",
        f"Check it every {rng.randrange(2, 40)} weeks and change it after {rng.randrange(2, 20)} years.",
        f"It weighs {rng.randrange(20, 9000)} g and bears {rng.randrange(1, 400)} bar.",
    ]
    rng.shuffle(sentences)
    head = f"Part {number}: {rng.choice(KINDS)} {noun}."
    return Part(number, torque, shelf, " ".join([head, *sentences]))


def draw_prose(rng: random.Random) -> Iterator[str]:
    """Stories, letters and conversations of the world that the embedded base was trained on, without end."""
    from assets.world.general import write_general
    from assets.world.things import build_world

    for text in write_general(rng, build_world()):
        plain = re.sub(r"<\|\w+\|>", "\n", text).strip()[:TEXT_LIMIT].strip()
        if plain:
            yield plain


def write_documents(path: Path, parts: Sequence[Part], chunks: int, rng: random.Random) -> None:
    """Writes a dataset of so many short texts, each of which is one chunk: half parts, half prose."""
    prose = draw_prose(rng)
    texts = [part.text for part in parts] + [passage for passage, _ in read_paraphrases()]
    texts += [next(prose) for _ in range(chunks - len(texts))]
    rng.shuffle(texts)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


# --- measuring


@dataclass
class Recall:
    """Questions asked, and those whose passage was found, first or among the first PASSAGES."""

    count: int = 0
    first: int = 0
    found: int = 0

    def add(self, texts: Sequence[str], wanted: str) -> None:
        """Adds the result of one question."""
        self.count += 1
        self.first += texts[:1] == [wanted]
        self.found += wanted in texts

    def figures(self, name: str) -> dict[str, Any]:
        """The shares, by name."""
        return {
            f"{name}_questions": self.count,
            f"{name}_recall_1": round(self.first / self.count, 3),
            f"{name}_recall_{PASSAGES}": round(self.found / self.count, 3),
        }


def measure_retrieval(quick: bool) -> dict[str, Any]:
    """Indexing, queries and recall, with words alone and with wordllama."""
    from core.engine import Engine
    from core.retrieve.encoders import WORDLLAMA, is_installed

    rng = random.Random(0)
    chunks = QUICK_CHUNKS if quick else CHUNKS
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, Engine(Path(folder) / "workspace", load=False) as engine:
        parts = draw_parts(rng, chunks // 2)
        file = Path(folder) / "documents.jsonl"
        write_documents(file, parts, chunks, rng)
        dataset = engine.datasets.import_files([file], "Documents").id
        figures["words"] = _measure_index(engine, dataset, "off", parts, chunks)
        if is_installed(WORDLLAMA):
            figures["with_wordllama"] = _measure_index(engine, dataset, "auto", parts, chunks)
        else:
            figures["with_wordllama"] = "not measured: wordllama is not installed"
    return figures


def _measure_index(
    engine: Any, dataset: str, encoder: str, parts: Sequence[Part], chunks: int
) -> dict[str, Any]:
    """The figures of one kind of index."""
    from core.spec.retrieval import RetrievalSettings

    settings = RetrievalSettings(encoder=encoder)
    begin, spent = time.perf_counter(), sum(os.times()[2:4])
    status = engine.retrieval.wait(engine.retrieval.index(dataset, settings))
    figures: dict[str, Any] = {"index_seconds": round(time.perf_counter() - begin, 1)}
    if status.state != "done" or status.chunks < chunks:
        raise RuntimeError(f"{status.state}, {status.chunks} chunks: {status.problem}")
    figures["index_cpu_seconds"] = round(sum(os.times()[2:4]) - spent, 1)
    figures["chunks"] = status.chunks
    begin = time.perf_counter()
    engine.retrieval.search(dataset, "Where is the harbour?", PASSAGES, settings)
    figures["first_query_seconds"] = round(time.perf_counter() - begin, 2)
    everything = dataclasses.replace(settings, threshold=0.0)
    wall: list[float] = []
    cpu: list[float] = []

    def ask(question: str) -> list[Any]:
        started, worked = time.perf_counter(), time.process_time()
        passages: list[Any] = engine.retrieval.search(dataset, question, PASSAGES, everything)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - worked)
        return passages

    exact, other_words, kept, nothing = Recall(), Recall(), Recall(), 0
    questions = ("Which torque does {} need?", "On which shelf is {}?", "{}", "What is {} for?")
    for number, part in enumerate(parts[:: len(parts) // PART_QUESTIONS]):
        found = ask(questions[number % 4].format(part.number))
        exact.add([p.text for p in found], part.text)
    for passage, question in read_paraphrases():
        found = ask(question)
        other_words.add([p.text for p in found], passage)
        kept.add([p.text for p in found if p.score > settings.threshold], passage)
    for question in ELSEWHERE:
        nothing += not engine.retrieval.search(dataset, question, PASSAGES, settings)
    figures |= exact.figures("part_number") | other_words.figures("paraphrase")
    figures["paraphrase_recall_5_above_threshold"] = kept.figures("kept")[f"kept_recall_{PASSAGES}"]
    figures["nothing_found_about_other_things"] = round(nothing / len(ELSEWHERE), 2)
    for name, seconds in (("query", wall), ("query_cpu", cpu)):
        figures[f"{name}_median_ms"] = round(1000 * statistics.median(seconds), 1)
        figures[f"{name}_p95_ms"] = round(1000 * sorted(seconds)[int(0.95 * (len(seconds) - 1))], 1)
    return figures


def measure_matrix(quick: bool, cache: Path | None) -> dict[str, Any]:
    """Base, base + documents, mix, and mix + documents on held-out questions, with intervals."""
    from benchmarks import evidence_matrix

    return evidence_matrix.measure_matrix(quick, cache)


def measure_rows(quick: bool, base: str) -> dict[str, Any]:
    """Four rows in one batch over the bare base, on the embedded base and on another one."""
    import torch

    from benchmarks import evidence_rows

    torch.set_num_threads(1)
    bases = {"embedded": "embedded", **({"real": base} if base else {})}
    return {name: evidence_rows.measure_rows(folder, quick) for name, folder in bases.items()}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "retrieval": lambda args: measure_retrieval(args.quick),
    "rows": lambda args: measure_rows(args.quick, args.base),
    "matrix": lambda args: measure_matrix(args.quick, args.cache),
}


def main() -> None:
    """Prints the figures; with `--json`, the last line is one object."""
    parser = argparse.ArgumentParser(description="Evidence: what retrieval finds, and how fast.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"One of: {', '.join(PARTS)}. Default: all.")
    parser.add_argument("--quick", action="store_true", help="Fewer chunks and questions.")
    parser.add_argument("--base", default="", help="A real base as a folder, for `rows` too.")
    parser.add_argument("--cache", type=Path, help="Folder of finished jobs and adapters of `matrix`.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object as the last line.")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    figures = {name: PARTS[name](args) for name in args.parts or PARTS}
    if args.json:
        print(json.dumps(figures))
        return
    for name, part in figures.items():
        print(f"{name}: {json.dumps(part, indent=2)}")


if __name__ == "__main__":
    main()
