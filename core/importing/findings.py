"""What an examination of a foreign adapter finds: records without torch, for the page and the terminal.

A finding says what the file holds, what follows from it, and which repairs there are. A finding that blocks
the import has to be answered with one of its repairs, or the adapter is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BLOCKS, WARNS, NOTES = "blocks", "warns", "notes"


@dataclass(frozen=True)
class Repair:
    """A way to answer a finding.

    Attributes:
        id: what the terminal's `--repair` takes, and the page sends.
        label: of the button.
        effect: what the imported adapter is then, in one sentence.
    """

    id: str
    label: str
    effect: str


@dataclass(frozen=True)
class Finding:
    """One property of a foreign adapter that the user has to know.

    Attributes:
        id: its kind.
        level: `BLOCKS`, `WARNS` or `NOTES`.
        what: what the file holds. follows: what follows from it. Both are sentences.
        repairs: ways to answer it; empty where there is none, or none is needed.
        chosen: the id of the repair that was chosen, or "".
    """

    id: str
    level: str
    what: str
    follows: str = ""
    repairs: tuple[Repair, ...] = ()
    chosen: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it still blocks the import."""
        return self.level == BLOCKS and not self.chosen


@dataclass(frozen=True)
class Preflight:
    """What is known about a foreign adapter before anything of it is loaded.

    Attributes:
        source: the name of the file, folder or repository.
        name: a display name for the library.
        tool: what made it, with its version where that is stated.
        form: how the file is laid out.
        base: the resident base. claimed_base: the base that the adapter names; "" where it names none.
        base_is_proven: the fingerprint in the adapter's own record is that of the resident base.
        ranks: the different ranks, ascending.
        scalings: the different factors of the update, ascending: alpha / r, or alpha / sqrt(r).
        targets: names of its layers inside a block, such as "mlp.down_proj".
        layers: how many blocks of the base it changes. modules: how many linear layers.
        parameters: numbers in its factors.
        properties: rsLoRA, DoRA, PiSSA, trained embeddings and so on, as words.
        findings: blocking ones first.
    """

    source: str
    name: str
    tool: str
    form: str
    base: str
    claimed_base: str
    base_is_proven: bool
    ranks: tuple[int, ...]
    scalings: tuple[float, ...]
    targets: tuple[str, ...]
    layers: int
    modules: int
    parameters: int
    properties: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=())

    @property
    def open_findings(self) -> tuple[Finding, ...]:
        """The findings that still block the import."""
        return tuple(f for f in self.findings if f.is_open)

    @property
    def can_import(self) -> bool:
        """Whether nothing blocks the import."""
        return not self.open_findings


@dataclass(frozen=True)
class FormAnswer:
    """The answer of the adapter to one form of a prompt.

    Attributes:
        form: what the form is.
        text: the answer.
        nats: the mean surprise of the adapter at its own answer, in nats a token.
        divergence: KL(adapter || base) in nats a token of the answer: how much the adapter changes here.
        is_preferred: whether the adapter changes most here.
    """

    form: str
    text: str
    nats: float
    divergence: float
    is_preferred: bool = False


@dataclass(frozen=True)
class Proof:
    """The base against an adapter on one line.

    Attributes:
        line: the prompt.
        base_text, adapter_text: the two greedy answers.
        divergence: KL(adapter || base) in nats a token, over the prompt's last token and the answer.
        verdict: what the numbers say, in one sentence.
        is_suspicious: whether the adapter changes nothing, or looks as if it belongs to another base.
        forms: the adapter's answer to each form of the prompt, where several were tried.
    """

    line: str
    base_text: str
    adapter_text: str
    divergence: float
    verdict: str
    is_suspicious: bool = False
    forms: tuple[FormAnswer, ...] = ()
