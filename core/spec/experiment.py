"""Settings of an experiment: which mixes, documents and bases answer which questions.

    mixes x documents x bases  ─┐
    rows, written one by one   ─┴─> list_rows ─> one cell each

Rows of one group are compared with each other, and never with rows of another group: a larger base answers
better whatever is done to it, so a group holds one size of base. An experiment is written as YAML, and
`parse_yaml` reads exactly what `format_yaml` writes.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from core.errors import SpecError
from core.spec.answer_metrics import ANSWER_METRICS
from core.spec.mix import NEW_TOKENS_LIMIT, Mix
from core.spec.promotion import PromotionRule
from core.spec.retrieval import RetrievalSettings
from core.spec.settings import SEED, Settings, check_field, setting

OFF, ON = "off", "on"
PASSAGES = 4  # that a prompt holds, where a row does not say
ROWS_LIMIT = 64
SPLITS = ("test", "val", "train", "all")
YAML_LIMIT = 200_000  # characters of a configuration file
DEPTH_LIMIT = 8  # levels of it
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ADDRESS = re.compile(r"https?://[^\s/@]+(?:/[^\s?#@]*)?")


def read_documents(text: str) -> RetrievalSettings | None:
    """How a row searches its documents; None for "off".

    Args:
        text: "off", "on", "on:8" for eight passages, or "on:chunk_size=400,overlap=50,passages=8" with any
            fields of `RetrievalSettings`.

    Raises:
        SpecError: another text, or a setting outside its limits.
    """
    head, _, tail = (part.strip() for part in text.partition(":"))
    if head == OFF and not tail:
        return None
    values: dict[str, Any] = {"passages": PASSAGES}
    try:
        if head != ON:
            raise ValueError
        if tail.isdecimal():
            values["passages"] = int(tail)
        elif tail:
            pairs = [part.split("=", 1) for part in tail.split(",")]
            values |= {name.strip(): _read_value(value.strip()) for name, value in pairs}
        return RetrievalSettings.from_json(values)
    except ValueError:
        raise SpecError(
            f'Documents must be "off", "on", or "on:" and settings, got {text!r}.',
            'Write "on:4" for four passages, or "on:chunk_size=400,passages=8".',
        ).at("documents") from None
    except SpecError as e:
        raise e.at("documents") from None


def _read_value(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class ExperimentRow(Settings):
    """One row of an experiment: a mix, with or without documents, on a base or at an address."""

    name: str = setting("", "Name of the row, which no other row has.", high=120)
    mix: str = setting("", 'Adapters by id or name with weights, such as "notes=0.7,tone=1"; "" is the base.')
    documents: str = setting(
        OFF, '"off", "on", "on:8" for eight passages, or "on:chunk_size=400,passages=8".', high=400
    )
    base: str = setting("", 'The base that answers; "" is the base that is loaded at the start.', high=400)
    group: str = setting(
        "", 'Rows are compared inside their group only; "" is the group of the base.', high=120
    )
    address: str = setting("", "An OpenAI-compatible address that answers in place of a base.", high=400)
    model: str = setting("", "The name of the model at the address.", high=200)
    key_variable: str = setting(
        "", "The environment variable with the key for the address; the key itself is never stored.", high=120
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        read_documents(self.documents)
        Mix.parse(self.mix)
        if self.address and not _ADDRESS.fullmatch(self.address):
            raise SpecError(
                f"An address must begin with http:// or https:// and hold no user or password, "
                f"got {self.address!r}.",
                'Write it as the program documents it, such as "https://example.org/v1".',
            ).at("address")
        if bool(self.address) != bool(self.model):
            raise SpecError("An address and the name of its model belong together.", "Give both.").at("model")
        if self.key_variable and not _VARIABLE.fullmatch(self.key_variable):
            raise SpecError(
                "The variable of a key must be a name of letters, digits and underscores.",
                "Give the name of the environment variable, never the key itself.",
            ).at("key_variable")

    @property
    def passages(self) -> int:
        """How many passages it reads; 0 without documents."""
        found = read_documents(self.documents)
        return found.passages if found else 0

    @property
    def group_name(self) -> str:
        """Its group."""
        return self.group or self.address or self.base

    @property
    def label(self) -> str:
        """Its name, or what it consists of."""
        mix = self.model or self.mix or "base"
        return self.name or (f"{mix} + documents" if self.passages else mix)


@dataclass(frozen=True)
class ExperimentSpec(Settings):
    """A matrix of mixes, documents and bases on one set of questions."""

    name: str = setting("", "Name of the experiment.", high=120)
    dataset: str = setting("", "The dataset with the questions.", high=120)
    split: str = setting("test", "The split of the dataset.", choices=SPLITS)
    limit: int = setting(0, "At most this many questions; 0 means all.", low=0, high=1_000_000)
    sources: tuple[str, ...] = setting(
        (), "Datasets that passages are searched in; none means all documents."
    )
    mixes: tuple[str, ...] = setting((), 'Mixes of the matrix; "" is the base.')
    documents: tuple[str, ...] = setting((OFF,), 'Documents of the matrix: "off", "on", "on:8".')
    bases: tuple[str, ...] = setting((), "Bases of the matrix; none means the base that is loaded.")
    rows: tuple[ExperimentRow, ...] = setting((), "Rows beside the matrix.")
    metrics: tuple[str, ...] = setting((), "Metrics; none means all that the questions allow.")
    max_new_tokens: int = setting(
        0,
        "Longest answer, in tokens; 0 follows the longest reference answer.",
        low=0,
        high=NEW_TOKENS_LIMIT,
        label="Longest answer (tokens)",
    )
    system: str = setting("", "The system prompt of every conversation.")
    general_questions: int = setting(
        40, "General questions that show what a mix has forgotten; 0 measures none.", low=0, high=1000
    )
    timed_questions: int = setting(
        12, "Questions that are answered one at a time, for latency.", low=0, high=1000
    )
    seed: int = setting(SEED, "Seed of the intervals.", low=0, high=2**31 - 1)
    rule: PromotionRule = dataclasses.field(
        default_factory=PromotionRule, metadata={"help": "When a row may be promoted."}
    )

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if f.name not in ("rows", "rule"):
                object.__setattr__(self, f.name, check_field(f, getattr(self, f.name)))
        object.__setattr__(self, "rows", _read_rows(self.rows))
        rule = self.rule if isinstance(self.rule, PromotionRule) else PromotionRule.from_json(self.rule)
        object.__setattr__(self, "rule", rule)
        if unknown := [m for m in self.metrics if m not in ANSWER_METRICS]:
            raise SpecError(
                f"Metrics must be among {', '.join(ANSWER_METRICS)}, got {unknown[0]!r}.",
                "Choose among these.",
            ).at("metrics")
        list_rows(self)


def list_rows(spec: ExperimentSpec) -> list[ExperimentRow]:
    """The rows of an experiment: the matrix, then the rows written one by one; each has a name.

    Raises:
        SpecError: more than ROWS_LIMIT rows, none, or two with one name.
    """
    bases = spec.bases or ("",)
    if len(spec.mixes) * len(spec.documents) * len(bases) + len(spec.rows) > ROWS_LIMIT:
        raise SpecError(f"An experiment may have at most {ROWS_LIMIT} rows.", "Leave out some values.")
    matrix = [
        ExperimentRow(mix=mix, documents=documents, base=base)
        for base in bases
        for mix in spec.mixes
        for documents in spec.documents
    ]
    several = len(spec.bases) > 1
    named = [dataclasses.replace(row, name=_name_row(row, spec, several)) for row in matrix]
    rows = [*named, *(dataclasses.replace(row, name=row.label) for row in spec.rows)]
    names = [row.name for row in rows]
    if not rows:
        raise SpecError("The experiment has no rows.", "Choose mixes, or write rows.").at("mixes")
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise SpecError(f"Two rows are called {double!r}.", "Give each row a name of its own.").at("rows")
    return rows


def _name_row(row: ExperimentRow, spec: ExperimentSpec, several_bases: bool) -> str:
    several = len([d for d in spec.documents if d != OFF]) > 1 and row.passages
    parts = [row.label, f"({row.documents})" if several else ""]
    parts.append(f"on {row.base}" if several_bases else "")
    return " ".join(part for part in parts if part)[:120]


def _read_rows(rows: Any) -> tuple[ExperimentRow, ...]:
    if not isinstance(rows, (list, tuple)) or len(rows) > ROWS_LIMIT:
        raise SpecError(f"Rows must be a list of at most {ROWS_LIMIT} rows.", "Write a list of rows.").at(
            "rows"
        )
    return tuple(r if isinstance(r, ExperimentRow) else ExperimentRow.from_json(r) for r in rows)


def format_yaml(spec: ExperimentSpec) -> str:
    """An experiment as YAML; a row leaves out the settings with their default."""
    import yaml

    plain, default = spec.to_json(), ExperimentRow().to_json()
    plain["rows"] = [{k: v for k, v in row.items() if v != default[k]} for row in plain["rows"]]
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def parse_yaml(text: str) -> ExperimentSpec:
    """Reads an experiment.

    YAML reads a bare `on` or `off` as true or false; both mean the documents.

    Raises:
        SpecError: it is not YAML, or a setting is unknown or outside its limits.
    """
    import yaml

    if len(text) > YAML_LIMIT:
        raise SpecError(
            f"The configuration may have {YAML_LIMIT} characters, got {len(text)}.", "Shorten it."
        )
    try:
        _check_events(yaml, text)
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise SpecError(f"The configuration is not YAML{where}.", "Correct that line.") from e
    except (RecursionError, ValueError) as e:  # nested too deeply, or a date that does not exist
        raise SpecError("The configuration cannot be read.", "Write names, numbers and lists only.") from e
    if isinstance(value, dict):
        value = {**value, "documents": _read_switches(value.get("documents", ("off",)))}
        rows = value.get("rows", ())
        if isinstance(rows, list):
            value["rows"] = [_read_row_switch(row) for row in rows]
    return ExperimentSpec.from_json(value)


def _check_events(yaml: Any, text: str) -> None:
    """Refuses aliases and deep nesting before anything is built.

    Raises:
        SpecError
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise SpecError("The configuration has an alias (*).", "Write the value out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_LIMIT:
            raise SpecError(
                f"The configuration may be nested {DEPTH_LIMIT} levels deep.", "Write the values flat."
            )


def _read_switches(documents: Any) -> Any:
    listed = [documents] if isinstance(documents, (bool, str)) else documents
    switches = {True: ON, False: OFF}
    if not isinstance(listed, (list, tuple)):
        return listed
    return [switches[d] if isinstance(d, bool) else d for d in listed]


def _read_row_switch(row: Any) -> Any:
    if isinstance(row, dict) and isinstance(row.get("documents"), bool):
        return {**row, "documents": ON if row["documents"] else OFF}
    return row
