"""Write the sample data that ships with the studio: one domain, one task, and what they are measured on.

    python -m assets.samples --out assets/sample

Knows file names and seeds. The text itself is `assets.world`.
"""

import argparse
import itertools
import json
import logging
import random
from pathlib import Path

from assets.world import chat
from assets.world.domain import SHIPPED_SEED, draw_domain, write_papers
from assets.world.general import write_general
from assets.world.tasks import (
    Row,
    ask_domain,
    ask_each,
    label_general,
    label_notes,
    probe_recall,
    split_facts,
)
from assets.world.things import World, build_world

logger = logging.getLogger(__name__)

# Between two documents of one file.
SEPARATOR = "\n\n---\n\n"

DRAWERS = {"manuals": "manuals.md", "log": "log.txt", "letters": "letters.txt", "notes": "notes.md"}

README = """# Sample data: the papers of {station} Station

{station} is an invented sea station. Its twelve instruments are {instruments}. Each has a place, a colour, a material,
a use and a maker; nothing outside `domain/` tells them. All text here is ours, written by `python -m assets.samples
--domain-seed {seed}`, and free to use under the licence of this project.

| file | what it is for |
|---|---|
| `domain/*.txt`, `domain/*.md` | train a domain adapter: {papers} short papers, divided by a line `---` between two blank lines |
| `task.jsonl` | train a task adapter: {task} questions about general things, each answered in one sentence |
| `heldout_questions.jsonl` | measure composition: {heldout} questions about the instruments, never labelled |
| `recall_probe.jsonl` | measure what the domain adapter knows: sentences whose end is a fact |
| `general.txt` | text to replay during domain training, so that plain English is kept |
| `general_heldout.txt` | measure forgetting: other general text |
| `general_questions.jsonl` | measure the task alone: {general} questions about general facts that `task.jsonl` leaves out |
"""


def build_sample(domain_seed: int = SHIPPED_SEED) -> dict[str, str]:
    """All sample files of one domain, as path inside the sample folder to content.

    Args:
        domain_seed: Which station; the general files and the task are the same for every station.
    """
    world, domain = build_world(), draw_domain(domain_seed)
    papers = write_papers(random.Random(f"papers-{domain_seed}"), domain)
    learned, held_out = split_facts(random.Random("task-facts"), world)
    task = label_general(random.Random("task"), learned) + label_notes(random.Random("task-notes"), 100)
    random.Random("task-order").shuffle(task)
    questions = ask_domain(random.Random(f"questions-{domain_seed}"), domain)
    general_questions = ask_each(random.Random("general-questions"), held_out)
    # The base reads the same kinds of text in pre-training; these seeds give documents of their own.
    replay = _plain("replay", world, 600)
    unseen = _plain("general-heldout", world, 160)

    files = {
        f"domain/{name}": _join(p.text for p in papers if p.drawer == drawer)
        for drawer, name in DRAWERS.items()
    }
    files["task.jsonl"] = _lines(task)
    files["heldout_questions.jsonl"] = _lines(questions)
    files["recall_probe.jsonl"] = _lines(probe_recall(domain))
    files["general_questions.jsonl"] = _lines(general_questions)
    files["general.txt"] = _join(replay)
    files["general_heldout.txt"] = _join(unseen)
    names = [thing.phrase for thing in domain.instruments]
    files["README.md"] = README.format(
        station=domain.station,
        instruments=", ".join(names[:-1]) + " and " + names[-1],
        seed=domain_seed,
        papers=len(papers),
        task=len(task),
        heldout=len(questions),
        general=len(general_questions),
    )
    return files


def _plain(seed: str, world: World, count: int) -> list[str]:
    """General documents without chats: a studio reads the marks of a chat in a text file as plain letters."""
    documents = write_general(random.Random(seed), world)
    return list(itertools.islice((text for text in documents if chat.USER not in text), count))


def _join(documents) -> str:
    return SEPARATOR.join(documents) + "\n"


def _lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_sample(out: Path, domain_seed: int = SHIPPED_SEED) -> None:
    """Write all sample files below a folder."""
    for name, content in build_sample(domain_seed).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def main() -> None:
    """Write the sample folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("assets/sample"), help="folder to write")
    parser.add_argument(
        "--domain-seed", type=int, default=SHIPPED_SEED, help="which station; 0 is the one that ships"
    )
    args = parser.parse_args()
    write_sample(args.out, args.domain_seed)
    logger.info("wrote %s", args.out)


if __name__ == "__main__":
    main()
