"""Training settings: `TrainSpec`, `Launch`, and the statuses of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from core.errors import SpecError
from core.spec.settings import SEED, Settings, setting

SCHEDULES = ("linear", "cosine", "constant", "cosine_with_min_lr", "inverse_sqrt")
OPTIMIZERS = ("auto", "adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor")
INITIALISATIONS = ("default", "pissa", "olora", "loftq")
SWITCHES = ("auto", "on", "off")
KEEPS = ("best", "last")
QUANTIZATIONS = ("auto", "nf4", "int8", "none")
KINDS = ("domain", "task")
LAUNCHERS = ("", "torchrun", "accelerate")
SHARDINGS = ("ddp", "fsdp")


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
    def is_alive(self) -> bool:
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
    RunStatus.QUEUED: (
        "It waits for the run before it.",
        "Leave it to begin by itself, or take it out of the queue.",
    ),
    RunStatus.RUNNING: (
        "It is taking steps.",
        "Talk to it under Mix while it learns; pause it, or stop it and keep what it has learned.",
    ),
    RunStatus.STOPPING: ("It finishes the step that it is in, then saves.", "Wait a moment."),
    RunStatus.PAUSED: (
        "It saved a checkpoint and gave the model back.",
        "Resume it when you like, also after a restart: it goes on as if nothing had been.",
    ),
    RunStatus.DONE: (
        "It took all its steps, or its validation loss no longer improved.",
        "Compare its adapter with the base, or mix it.",
    ),
    RunStatus.STOPPED: (
        "Someone ended it; what it had learned by then is in the Library.",
        "Use its adapter, or resume the run to go on learning.",
    ),
    RunStatus.DIVERGED: (
        "Its loss was no longer a number, so it stopped before that reached the adapter.",
        "Start again with a lower learning rate; its last checkpoint is finite, but resuming it takes the same steps again.",
    ),
    RunStatus.OUT_OF_MEMORY: (
        "A step did not fit the device, even one row at a time.",
        "Start again with one of the settings that the error names.",
    ),
    RunStatus.DISK_FULL: (
        "A checkpoint could not be written; nothing half-written was kept.",
        "Free some space, then resume it from its last checkpoint.",
    ),
    RunStatus.INTERRUPTED: (
        "Its process ended before it did.",
        "Resume it: it goes on from its last checkpoint.",
    ),
    RunStatus.FAILED: (
        "It ended in an error.",
        "Do what the error says; if a checkpoint is left, it can then be resumed.",
    ),
}


@dataclass(frozen=True)
class TrainSpec(Settings):
    """Everything that decides a training run. The same spec, data and machine give the same losses."""

    kind: str = setting(
        "domain", "Domain learns from plain text; task learns from labelled pairs.", choices=KINDS
    )
    name: str = setting("", "What the adapter is called in the Library.", high=120)
    dataset: str = setting("", "The dataset to learn from.", high=64)
    stack_on: str = setting(
        "",
        "Train on top of this adapter, frozen and active, so that the two work together.",
        high=64,
        label="Train on top of",
    )
    epochs: float = setting(
        3.0, "How many times the run reads the whole training split.", low=0.01, high=1000
    )
    max_steps: int = setting(
        0, "Ends the run after this many optimizer steps; 0 means after all epochs.", low=0, high=1_000_000
    )
    learning_rate: float = setting(2e-4, "How far each step moves the adapter.", low=1e-7, high=0.1)
    batch_size: int = setting(
        4, "Sequences per forward pass; more is faster and needs more memory.", low=1, high=256
    )
    accumulation: int = setting(
        4,
        "Forward passes per optimizer step; batch size times this is the effective batch.",
        low=1,
        high=256,
        label="Gradient accumulation",
    )
    max_length: int = setting(
        512,
        "Longest sequence in tokens; longer task examples are cut, text is packed into it.",
        low=16,
        high=32768,
    )
    rank: int = setting(
        16, "Size of the adapter's update: higher learns more and weighs more.", low=1, high=256
    )
    alpha: int = setting(
        32, "Scale of the update; alpha divided by rank multiplies what the adapter adds.", low=1, high=1024
    )
    dropout: float = setting(
        0.1,
        "Share of the adapter's inputs hidden at random while training.",
        low=0.0,
        high=0.9,
        label="LoRA dropout",
    )
    target_modules: tuple[str, ...] = setting(
        (), "Layers that get an update; empty means the usual ones for the base model's family."
    )
    warmup_ratio: float = setting(
        0.03, "Share of the steps in which the learning rate climbs from zero.", low=0.0, high=0.9
    )
    schedule: str = setting("cosine", "How the learning rate falls after the warm-up.", choices=SCHEDULES)
    weight_decay: float = setting(0.0, "Pull of the adapter's weights towards zero.", low=0.0, high=1.0)
    domain_dropout: float = setting(
        0.5,
        "Share of the forward passes in which the adapter below is switched off, so that both also work alone.",
        low=0.0,
        high=0.95,
    )
    replay_share: float = setting(
        0.0,
        "Share of the training text that is general text, mixed in so that general language is not forgotten.",
        low=0.0,
        high=0.9,
    )
    replay_dataset: str = setting(
        "", "The text dataset to replay; empty means the general text that comes with the studio.", high=64
    )
    seed: int = setting(
        SEED, "Decides the order of the data, the first weights and the dropout.", low=0, high=2**31 - 1
    )
    save_steps: int = setting(
        0, "Steps between checkpoints; 0 means about ten in a run.", low=0, high=1_000_000
    )
    eval_steps: int = setting(
        0, "Steps between validations; 0 means about ten in a run.", low=0, high=1_000_000
    )
    packing: bool = setting(
        True,
        "Fills each row with several short sequences, which do not see each other; without it, every sequence is padded.",
    )
    overlap: int = setting(
        0, "Tokens that two neighbouring parts of a long document share.", low=0, high=16384
    )
    use_rslora: bool = setting(
        False,
        "Divides alpha by the root of the rank, which lets high ranks learn as fast as low ones.",
        label="Rank-stabilised (rsLoRA)",
    )
    use_dora: bool = setting(
        False,
        "Learns size and direction of each weight apart; slower, and the adapter cannot be mixed live.",
        label="DoRA",
    )
    initialisation: str = setting(
        "default",
        "What the adapter starts from; all but the default are converted to plain LoRA at the end.",
        choices=INITIALISATIONS,
    )
    lora_plus_ratio: float = setting(
        1.0,
        "How much faster B learns than A (LoRA+); 1 is plain LoRA, 16 is usual.",
        low=1.0,
        high=64.0,
        label="LoRA+ ratio",
    )
    neftune_alpha: float = setting(
        0.0,
        "Noise on the inputs while training (NEFTune); 0 is none, 5 is usual.",
        low=0.0,
        high=50.0,
        label="NEFTune noise",
    )
    optimizer: str = setting(
        "auto",
        "Takes the steps; the 8-bit ones save memory on a GPU, and auto picks by device.",
        choices=OPTIMIZERS,
    )
    gradient_checkpointing: str = setting(
        "auto", "Computes activations twice to save memory; auto does so on a GPU.", choices=SWITCHES
    )
    early_stopping: int = setting(
        0, "Ends the run after so many validations without a better loss; 0 never does.", low=0, high=1000
    )
    keep: str = setting(
        "best", "Which adapter is kept: the one with the lowest validation loss, or the last.", choices=KEEPS
    )
    experts: bool = setting(
        False,
        "Also trains the experts of a mixture-of-experts base: many more weights.",
        label="Train the experts",
    )
    report_to: tuple[str, ...] = setting(
        (), "Where the loss is logged as well: tensorboard, trackio or wandb, if installed."
    )
    sample_prompts: tuple[str, ...] = setting(
        (),
        "Prompts that the adapter in training answers at every validation; empty takes one from the validation split.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts and self.dropout:  # peft refuses it too, in its own words
            raise SpecError(
                f"LoRA dropout is {self.dropout:g}, and adapters on experts have none.",
                "Set LoRA dropout to 0, or leave the experts out.",
            )
        if self.use_dora and self.initialisation != "default":
            raise SpecError(
                f"DoRA and a {self.initialisation} start do not go together.",
                "Choose the default initialisation, or switch DoRA off.",
            )
        if self.use_dora and self.stack_on:
            raise SpecError(
                "A DoRA adapter cannot be mixed, so it cannot be trained on top of another one.",
                "Switch DoRA off, or train it on the base alone.",
            )

    def uses_gradient_checkpointing(self, on_gpu: bool) -> bool:
        """Are activations computed twice on such a device, to save memory?"""
        return self.gradient_checkpointing == "on" or (self.gradient_checkpointing == "auto" and on_gpu)

    @property
    def effective_batch(self) -> int:
        """Sequences per optimizer step."""
        return self.batch_size * self.accumulation


def describe_expert_training(parameters_per_rank: int, rank: int, parameters: int) -> str:
    """What training the experts of a base means, before it begins.

    Args:
        weights_a_rank: numbers that one rank has over all experts. parameters: of the base.
    """
    count = parameters_per_rank * rank
    return (
        f"On all experts, rank {rank} is {count:,} trainable weights ({count / max(parameters, 1):.2%} of the base). Such an adapter can be mixed live with any "
        "other; it cannot be baked or compared layer by layer, and peft's own add_weighted_adapter refuses it. Each step builds a full-size update of a layer's experts."
    )


@dataclass(frozen=True)
class Launch(Settings):
    """In which processes a run trains. It decides how fast, not what is learned."""

    launcher: str = setting(
        "",
        "Starts several processes that train together; empty trains in the studio itself.",
        choices=LAUNCHERS,
    )
    nproc: int = setting(
        1, "Processes on this machine, usually one a GPU.", low=1, high=64, label="Processes"
    )
    nnodes: int = setting(
        1,
        "Machines that train together; all of them reach the same workspace folder.",
        low=1,
        high=64,
        label="Machines",
    )
    node_rank: int = setting(0, "The number of this machine, from 0.", low=0, high=63, label="This machine")
    rdzv_endpoint: str = setting(
        "", "Where the machines meet: host:port of the first one.", high=200, label="Meeting point"
    )
    sharding: str = setting(
        "ddp",
        "ddp keeps the base whole in every process; fsdp spreads it over them, for bases too large for one GPU.",
        choices=SHARDINGS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.node_rank >= self.nnodes:
            raise SpecError(
                f"This machine is number {self.node_rank} of {self.nnodes}.",
                f"Count from 0 to {self.nnodes - 1}.",
            )
        if self.nnodes > 1 and not re.fullmatch(r"[\w.-]+:\d{1,5}", self.rdzv_endpoint):
            raise SpecError(
                f"The meeting point is {self.rdzv_endpoint!r}.",
                "Give host:port of the first machine, the same on all of them.",
            )
        if not self.launcher and self.world_size > 1:
            raise SpecError(
                f"{self.world_size} processes were asked for without a launcher.",
                f"Choose one of: {', '.join(LAUNCHERS[1:])}.",
            )

    @property
    def world_size(self) -> int:
        """Processes of all machines."""
        return self.nproc * self.nnodes
