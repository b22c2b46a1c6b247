"""What a run, a mix and a generation are made of: frozen dataclasses with limits.

Each field has one sentence, a default and limits, written once here; the form, the terminal and the
API show that same sentence. Knows nothing of torch, files or pages.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from core.errors import SpecError

SEED = 20251101
WEIGHT_LIMIT = 2.0  # a mix's weights lie in [-WEIGHT_LIMIT, WEIGHT_LIMIT]
WEIGHT_STEP = 0.05
TILT_LIMIT = 1.0  # a mix's tilts lie in [-TILT_LIMIT, TILT_LIMIT]
LIST_LIMIT = 512  # entries of a list of texts
COLUMN_LIMIT = 6  # mixes side by side
SCHEDULES = ("linear", "cosine", "constant", "cosine_with_min_lr", "inverse_sqrt")
OPTIMIZERS = ("auto", "adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor")
INITIALISATIONS = ("default", "pissa", "olora", "loftq")
SWITCHES = ("auto", "on", "off")
KEEPS = ("best", "last")
QUANTIZATIONS = ("auto", "nf4", "int8", "none")
KINDS = ("domain", "task")
LAUNCHERS = ("", "torchrun", "accelerate")
SHARDINGS = ("ddp", "fsdp")

Spec = TypeVar("Spec", bound="Limited")


class RunStatus(str, Enum):
    """Where a run is in its life; `meaning` and `next_step` say each in a sentence."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    PAUSED = "paused"
    DONE = "finished"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out of memory"
    DISK_FULL = "disk full"
    INTERRUPTED = "interrupted"
    FAILED = "failed"

    @classmethod
    def _missing_(cls, value: object) -> RunStatus | None:
        return cls.DONE if value == "done" else None  # as 0.1.0 wrote it

    @property
    def alive(self) -> bool:
        return self in (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.STOPPING)

    @property
    def meaning(self) -> str:
        """What it means, in a sentence."""
        return STATUS_WORDS[self][0]

    @property
    def next_step(self) -> str:
        """What to do about it, in a sentence."""
        return STATUS_WORDS[self][1]


STATUS_WORDS: dict[RunStatus, tuple[str, str]] = {  # what it means, what to do
    RunStatus.QUEUED: ("It waits for the run before it.", "Leave it to begin by itself, or take it out of the queue."),
    RunStatus.RUNNING: ("It is taking steps.", "Talk to it under Mix while it learns; pause it, or stop it and keep what it has learned."),
    RunStatus.STOPPING: ("It finishes the step that it is in, then saves.", "Wait a moment."),
    RunStatus.PAUSED: ("It saved a checkpoint and gave the model back.", "Resume it when you like, also after a restart: it goes on as if nothing had been."),
    RunStatus.DONE: ("It took all its steps, or its validation loss no longer improved.", "Compare its adapter with the base, or mix it."),
    RunStatus.STOPPED: ("Someone ended it; what it had learned by then is in the Library.", "Use its adapter, or resume the run to go on learning."),
    RunStatus.DIVERGED: (
        "Its loss was no longer a number, so it stopped before that reached the adapter.",
        "Start again with a lower learning rate; its last checkpoint is finite, but resuming it takes the same steps again.",
    ),
    RunStatus.OUT_OF_MEMORY: ("A step did not fit the device, even one row at a time.", "Start again with one of the settings that the error names."),
    RunStatus.DISK_FULL: ("A checkpoint could not be written; nothing half-written was kept.", "Free some space, then resume it from its last checkpoint."),
    RunStatus.INTERRUPTED: ("Its process ended before it did.", "Resume it: it goes on from its last checkpoint."),
    RunStatus.FAILED: ("It ended in an error.", "Do what the error says; if a checkpoint is left, it can then be resumed."),
}


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    label: str = "",
) -> Any:
    """A dataclass field with its sentence and its limits (inclusive)."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "label": label}
    if isinstance(default, (list, tuple, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Limited:
    """Checks every field's type and limits when built, and goes through JSON and back."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]
        return value

    @classmethod
    def from_json(cls: type[Spec], value: dict[str, Any]) -> Spec:
        """Builds from a dict of fields.

        Raises:
            SpecError: an unknown field, a wrong type, or a value outside its limits.
        """
        if not isinstance(value, dict):
            raise SpecError(f"The settings are {value!r}.", "Give them by name.")
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(value) - known):
            raise SpecError(f"Unknown settings: {', '.join(unknown)}.", f"Known are: {', '.join(sorted(known))}.")
        return cls(**value)


def label_of(f: dataclasses.Field[Any]) -> str:
    """The label that people see for a field."""
    return f.metadata.get("label") or f.name.replace("_", " ").capitalize()


def _checked(f: dataclasses.Field[Any], value: Any) -> Any:
    kind, meta = str(f.type), f.metadata
    label = label_of(f)
    if kind in ("int", "float"):
        if not _is_number(value):
            raise SpecError(f"{label} is {value!r}, not a number.", _allowed(meta))
        if kind == "int" and value != int(value):
            raise SpecError(f"{label} is {value!r}, not a whole number.", _allowed(meta))
        value = int(value) if kind == "int" else float(value)
        if (meta.get("low") is not None and value < meta["low"]) or (meta.get("high") is not None and value > meta["high"]):
            raise SpecError(f"{label} is {value:g}.", _allowed(meta))
    elif kind == "bool":
        if not isinstance(value, bool):
            raise SpecError(f"{label} is {value!r}.", "It is true or false.")
    elif kind == "str":
        if not isinstance(value, str) or len(value) > (meta.get("high") or 4000):
            raise SpecError(f"{label} is not a text of at most {int(meta.get('high') or 4000)} characters.", "Give a shorter text.")
        if meta.get("choices") and value not in meta["choices"]:
            raise SpecError(f"{label} is {value!r}.", f"Choose one of: {', '.join(meta['choices'])}.")
    elif kind.startswith("tuple"):
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise SpecError(f"{label} is {value!r}.", "Give a list of texts.")
        if len(value) > LIST_LIMIT or any(len(v) > 4000 for v in value):
            raise SpecError(f"{label} has {len(value)} entries.", f"Give at most {LIST_LIMIT}, of at most 4000 characters each.")
        value = tuple(value)
    return value


def _is_number(value: Any) -> bool:
    """A finite int or float; an int so large that no float holds it is none either."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def plain(number: float) -> str:
    """A limit as people write it: whole numbers in full."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def _allowed(meta: Any) -> str:
    low, high = meta.get("low"), meta.get("high")
    return f"Allowed are {plain(low)} to {plain(high)}." if low is not None and high is not None else "Give a number."


@dataclass(frozen=True)
class TrainSpec(Limited):
    """Everything that decides a training run. The same spec, data and machine give the same losses."""

    kind: str = setting("domain", "Domain learns from plain text; task learns from labelled pairs.", choices=KINDS)
    name: str = setting("", "What the adapter is called in the Library.", high=120)
    dataset: str = setting("", "The dataset to learn from.", high=64)
    stack_on: str = setting(
        "", "Train on top of this adapter, frozen and active, so that the two work together.", high=64, label="Train on top of"
    )
    epochs: float = setting(3.0, "How many times the run reads the whole training split.", low=0.01, high=1000)
    max_steps: int = setting(0, "Ends the run after this many optimizer steps; 0 means after all epochs.", low=0, high=1_000_000)
    learning_rate: float = setting(2e-4, "How far each step moves the adapter.", low=1e-7, high=0.1)
    batch_size: int = setting(4, "Sequences per forward pass; more is faster and needs more memory.", low=1, high=256)
    accumulation: int = setting(
        4, "Forward passes per optimizer step; batch size times this is the effective batch.", low=1, high=256, label="Gradient accumulation"
    )
    max_length: int = setting(512, "Longest sequence in tokens; longer task examples are cut, text is packed into it.", low=16, high=32768)
    rank: int = setting(16, "Size of the adapter's update: higher learns more and weighs more.", low=1, high=256)
    alpha: int = setting(32, "Scale of the update; alpha divided by rank multiplies what the adapter adds.", low=1, high=1024)
    dropout: float = setting(0.1, "Share of the adapter's inputs hidden at random while training.", low=0.0, high=0.9, label="LoRA dropout")
    target_modules: tuple[str, ...] = setting((), "Layers that get an update; empty means the usual ones for the base model's family.")
    warmup_ratio: float = setting(0.03, "Share of the steps in which the learning rate climbs from zero.", low=0.0, high=0.9)
    schedule: str = setting("cosine", "How the learning rate falls after the warm-up.", choices=SCHEDULES)
    weight_decay: float = setting(0.0, "Pull of the adapter's weights towards zero.", low=0.0, high=1.0)
    domain_dropout: float = setting(
        0.5,
        "Share of the forward passes in which the adapter below is switched off, so that both also work alone.",
        low=0.0,
        high=0.95,
    )
    replay_share: float = setting(
        0.0, "Share of the training text that is general text, mixed in so that general language is not forgotten.", low=0.0, high=0.9
    )
    replay_dataset: str = setting("", "The text dataset to replay; empty means the general text that comes with the studio.", high=64)
    seed: int = setting(SEED, "Decides the order of the data, the first weights and the dropout.", low=0, high=2**31 - 1)
    save_steps: int = setting(0, "Steps between checkpoints; 0 means about ten in a run.", low=0, high=1_000_000)
    eval_steps: int = setting(0, "Steps between validations; 0 means about ten in a run.", low=0, high=1_000_000)
    packing: bool = setting(True, "Fills each row with several short sequences, which do not see each other; without it, every sequence is padded.")
    overlap: int = setting(0, "Tokens that two neighbouring parts of a long document share.", low=0, high=16384)
    use_rslora: bool = setting(False, "Divides alpha by the root of the rank, which lets high ranks learn as fast as low ones.", label="Rank-stabilised (rsLoRA)")
    use_dora: bool = setting(False, "Learns size and direction of each weight apart; slower, and the adapter cannot be mixed live.", label="DoRA")
    initialisation: str = setting("default", "What the adapter starts from; all but the default are converted to plain LoRA at the end.", choices=INITIALISATIONS)
    lora_plus_ratio: float = setting(1.0, "How much faster B learns than A (LoRA+); 1 is plain LoRA, 16 is usual.", low=1.0, high=64.0, label="LoRA+ ratio")
    neftune_alpha: float = setting(0.0, "Noise on the inputs while training (NEFTune); 0 is none, 5 is usual.", low=0.0, high=50.0, label="NEFTune noise")
    optimizer: str = setting("auto", "Takes the steps; the 8-bit ones save memory on a GPU, and auto picks by device.", choices=OPTIMIZERS)
    gradient_checkpointing: str = setting("auto", "Computes activations twice to save memory; auto does so on a GPU.", choices=SWITCHES)
    early_stopping: int = setting(0, "Ends the run after so many validations without a better loss; 0 never does.", low=0, high=1000)
    keep: str = setting("best", "Which adapter is kept: the one with the lowest validation loss, or the last.", choices=KEEPS)
    experts: bool = setting(False, "Also trains the experts of a mixture-of-experts base: many more weights.", label="Train the experts")
    report_to: tuple[str, ...] = setting((), "Where the loss is logged as well: tensorboard, trackio or wandb, if installed.")
    sample_prompts: tuple[str, ...] = setting((), "Prompts that the adapter in training answers at every validation; empty takes one from the validation split.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts and self.dropout:  # peft refuses it too, in its own words
            raise SpecError(f"LoRA dropout is {self.dropout:g}, and adapters on experts have none.", "Set LoRA dropout to 0, or leave the experts out.")
        if self.use_dora and self.initialisation != "default":
            raise SpecError(f"DoRA and a {self.initialisation} start do not go together.", "Choose the default initialisation, or switch DoRA off.")
        if self.use_dora and self.stack_on:
            raise SpecError("A DoRA adapter cannot be mixed, so it cannot be trained on top of another one.", "Switch DoRA off, or train it on the base alone.")

    def recomputes(self, on_gpu: bool) -> bool:
        """Are activations computed twice on such a device, to save memory?"""
        return self.gradient_checkpointing == "on" or (self.gradient_checkpointing == "auto" and on_gpu)

    @property
    def effective_batch(self) -> int:
        """Sequences per optimizer step."""
        return self.batch_size * self.accumulation


def experts_said(weights_a_rank: int, rank: int, parameters: int) -> str:
    """What training the experts of a base means, before it begins.

    Args:
        weights_a_rank: numbers that one rank has over all experts. parameters: of the base.
    """
    count = weights_a_rank * rank
    return (
        f"On all experts, rank {rank} is {count:,} trainable weights ({count / max(parameters, 1):.2%} of the base). Such an adapter can be mixed live with any "
        "other; it cannot be baked or compared layer by layer, and peft's own add_weighted_adapter refuses it. Each step builds a full-size update of a layer's experts."
    )


@dataclass(frozen=True)
class Launch(Limited):
    """In which processes a run trains. It decides how fast, not what is learned."""

    launcher: str = setting("", "Starts several processes that train together; empty trains in the studio itself.", choices=LAUNCHERS)
    nproc: int = setting(1, "Processes on this machine, usually one a GPU.", low=1, high=64, label="Processes")
    nnodes: int = setting(1, "Machines that train together; all of them reach the same workspace folder.", low=1, high=64, label="Machines")
    node_rank: int = setting(0, "The number of this machine, from 0.", low=0, high=63, label="This machine")
    rdzv_endpoint: str = setting("", "Where the machines meet: host:port of the first one.", high=200, label="Meeting point")
    sharding: str = setting("ddp", "ddp keeps the base whole in every process; fsdp spreads it over them, for bases too large for one GPU.", choices=SHARDINGS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.node_rank >= self.nnodes:
            raise SpecError(f"This machine is number {self.node_rank} of {self.nnodes}.", f"Count from 0 to {self.nnodes - 1}.")
        if self.nnodes > 1 and not re.fullmatch(r"[\w.-]+:\d{1,5}", self.rdzv_endpoint):
            raise SpecError(f"The meeting point is {self.rdzv_endpoint!r}.", "Give host:port of the first machine, the same on all of them.")
        if not self.launcher and self.world > 1:
            raise SpecError(f"{self.world} processes were asked for without a launcher.", f"Choose one of: {', '.join(LAUNCHERS[1:])}.")

    @property
    def world(self) -> int:
        """Processes of all machines."""
        return self.nproc * self.nnodes


@dataclass(frozen=True)
class Sampling(Limited):
    """How text is drawn from the model."""

    max_new_tokens: int = setting(96, "Longest answer in tokens.", low=1, high=4096, label="Longest answer (tokens)")
    temperature: float = setting(0.0, "0 always takes the likeliest token; higher is more varied.", low=0.0, high=4.0)
    top_k: int = setting(0, "Draw from this many likeliest tokens only; 0 means all.", low=0, high=100_000, label="Top-k")
    top_p: float = setting(1.0, "Draw from the likeliest tokens that hold this share of probability.", low=0.01, high=1.0, label="Top-p")
    repetition_penalty: float = setting(1.0, "Above 1 makes tokens that were already written less likely.", low=0.5, high=3.0)
    seed: int = setting(0, "The same seed and mix draw the same text.", low=0, high=2**31 - 1)
    stop: tuple[str, ...] = setting((), "Texts at which an answer ends.", label="Stop texts")


@dataclass(frozen=True)
class Mix(Limited):
    """Weights for adapters; one that is missing or zero is really off. The empty mix is the base model.

    A tilt t makes a weight w vary over the layers, w · (1 - t) in the first and w · (1 + t) in the last,
    evenly between: 1 is deep, -1 is shallow, and the mean stays w.
    """

    name: str = setting("", "What the mix is called.", high=120)
    weights: dict[str, float] = setting({}, "Adapter id to weight, each from -2 to 2.")
    tilt: dict[str, float] = setting({}, "Adapter id to how its weight leans with depth: 1 is all deep, -1 all shallow, 0 even.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", _numbers("weight", self.weights, WEIGHT_LIMIT))
        tilt = _numbers("tilt", self.tilt, TILT_LIMIT)
        object.__setattr__(self, "tilt", {a: t for a, t in tilt.items() if a in self.weights})

    @classmethod
    def parse(cls, text: str, name: str = "") -> Mix:
        """Reads `"dom=0.7@1,task=1"`; a bare id weighs 1, `@` gives a tilt, and `""` or `"base"` is the base model.

        Raises:
            SpecError: a part that has no such form.
        """
        weights: dict[str, float] = {}
        tilt: dict[str, float] = {}
        for part in re.split(r"[,+]", text) if text.strip() not in ("", "base") else []:
            head, at, lean = (p.strip() for p in part.partition("@"))
            adapter, equals, number = (p.strip() for p in head.partition("="))
            twice = adapter in weights
            try:
                weights[adapter] = float(number) if equals else 1.0
                tilt[adapter] = float(lean) if at else 0.0
            except ValueError:
                adapter = ""
            if not adapter or twice:
                raise SpecError(f"{part!r} is not a part of a mix.", 'Write a mix as "domain=0.7,task=1", or "domain=0.7@1" for deep layers; "" is the base model.')
        return cls(name=name, weights=weights, tilt=tilt)

    def __str__(self) -> str:
        return " + ".join(a + (f"={_exact(w)}" if w != 1 else "") + (f"@{_exact(self.tilt[a])}" if a in self.tilt else "") for a, w in self.weights.items()) or "base"


def _numbers(what: str, given: Any, limit: float) -> dict[str, float]:
    """Adapter ids and their numbers from -limit to limit, without the zeros."""
    if not isinstance(given, dict) or not all(isinstance(adapter, str) for adapter in given):
        raise SpecError(f"The {what}s are {given!r}.", f"Give adapter ids and their {what}s.")
    for adapter, number in given.items():
        if not _is_number(number) or abs(number) > limit:
            raise SpecError(f"The {what} of {adapter!r} is {number!r}.", f"{what.capitalize()}s lie between {-limit:g} and {limit:g}.")
    return {adapter: float(number) for adapter, number in given.items() if number}


def _exact(number: float) -> str:
    """A number as people write it, or in full where that would not read back the same."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def by_depth(deep: str, shallow: str, name: str = "Domain deep, task shallow") -> Mix:
    """Two adapters that share the layers: one grows towards the last, the other towards the first.

    Args:
        deep, shallow: adapter ids, usually of a domain and of a task.

    Source: TaDA, arXiv 2606.05016.
    """
    return Mix(name=name, weights={deep: 1.0, shallow: 1.0}, tilt={deep: 1.0, shallow: -1.0})


@dataclass(frozen=True)
class Preset:
    """A named set of training settings for bases of one size, one for each kind of adapter.

    Attributes:
        label: what people read. family: the label of the family that it is meant for, or "".
        quantization: how the base is meant to be loaded, or "" for any way.
    """

    name: str
    help: str
    domain: dict[str, Any]
    task: dict[str, Any]
    label: str = ""
    family: str = ""
    quantization: str = ""

    @property
    def title(self) -> str:
        return self.label or self.name.capitalize()

    def settings(self, kind: str) -> dict[str, Any]:
        return dict(self.domain if kind == "domain" else self.task)


_MISTRAL: dict[str, Any] = {
    "rank": 16, "alpha": 32, "dropout": 0.05, "learning_rate": 2e-4, "batch_size": 4, "accumulation": 4, "epochs": 3.0, "max_length": 512,
}  # fmt: skip
_DIALOGPT: dict[str, Any] = {
    "rank": 16, "alpha": 32, "dropout": 0.1, "learning_rate": 2e-4, "batch_size": 4, "accumulation": 1, "epochs": 3.0, "max_length": 256,
}  # fmt: skip
PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset("standard", "The usual QLoRA settings, for bases from half a billion parameters on.", {}, {}),
        Preset("gentle", "Half the learning rate and one epoch, for small data or a base that forgets quickly.",
               {"learning_rate": 1e-4, "epochs": 1.0}, {"learning_rate": 1e-4, "epochs": 1.0}),
        Preset("embedded", "Measured on the tiny base model that comes with the studio; minutes on a laptop.",
               {"learning_rate": 3e-3, "epochs": 20.0, "batch_size": 2, "accumulation": 1, "max_length": 256, "dropout": 0.0,
                "replay_share": 0.3, "warmup_ratio": 0.05, "keep": "last"},  # facts go on settling after the loss turns: recall .78 at the best step, .85 at the last
               {"learning_rate": 3e-4, "epochs": 6.0, "batch_size": 16, "accumulation": 1, "max_length": 128, "dropout": 0.0,
                "domain_dropout": 0.5, "warmup_ratio": 0.05, "packing": False}),
        Preset("mistral-7b-qlora", "A folder of Markdown or JSON sections into Mistral 7B: the base in 4 bits, every linear layer of its blocks.",
               _MISTRAL, _MISTRAL, "Mistral 7B, QLoRA", "Mistral", "nf4"),
        Preset("dialogpt", "Turns of a dialogue into DialoGPT (medium): short sequences, turns joined by the end token.", _DIALOGPT, _DIALOGPT, "DialoGPT",
               "GPT-2 / DialoGPT"),
    )
}


def resolve(kind: str, preset: str, changes: dict[str, Any]) -> TrainSpec:
    """A TrainSpec from the defaults, then a preset, then the user's own changes.

    Raises:
        SpecError: unknown kind, preset or setting, or a value outside its limits.
    """
    if preset not in PRESETS:
        raise SpecError(f"There is no preset {preset!r}.", f"Choose one of: {', '.join(PRESETS)}.")
    return TrainSpec.from_json({"kind": kind, **PRESETS[preset].settings(kind), **changes})
