"""Settings of a training run (`TrainSpec`) and of its processes (`Launch`), and its `RunStatus`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from core.errors import SpecError
from core.spec.settings import SEED, Settings, setting

KINDS = ("domain", "task")
SCHEDULES = ("linear", "cosine", "constant", "cosine_with_min_lr", "inverse_sqrt")
OPTIMIZERS = ("auto", "adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor")
INITIALISATIONS = ("default", "pissa", "olora", "loftq")
CHECKPOINTING_MODES = ("auto", "on", "off")
KEEP_CHOICES = ("best", "last")
QUANTIZATIONS = ("auto", "nf4", "int8", "none")  # how the base of a run is loaded
LAUNCHERS = ("", "torchrun", "accelerate")
SHARDINGS = ("ddp", "fsdp")
# The version of the rules by which new runs train: how the settings become rates and token ids. A run keeps
# the rules that it began under (`TrainSpec.rules`), so that it resumes to the same weights.
#   1  as 0.1.0 trained: the learning rate of the first step is 0 where there is a warm-up
#   2  every step has a learning rate above 0 (`core.train.schedule`), and the ids of a prompt are the first
#      ids of what is trained (`core.data.tokens.chat_encoding`)
#   3  on a CPU, sequences that begin alike share the computation of their beginning, and the numbers of a
#      step are rounded in another order (`core.train.lean`); bases other than the embedded one replay
#      real English (`core.data.samples`)
RULES = 3
LEAN_RULES = 3


class RunStatus(str, Enum):
    """The status of a run; `explanation` and `next_step` are for the user."""

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
        return cls.DONE if value == "done" else None  # the value that 0.1.0 wrote

    @property
    def is_alive(self) -> bool:
        """Whether a process must own a run of this status."""
        return self in (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.STOPPING)

    @property
    def explanation(self) -> str:
        """One sentence: what the status means."""
        return STATUS_TEXTS[self][0]

    @property
    def next_step(self) -> str:
        """One sentence: what the user can do next."""
        return STATUS_TEXTS[self][1]


STATUS_TEXTS: dict[RunStatus, tuple[str, str]] = {  # (explanation, next step)
    RunStatus.QUEUED: (
        "It is waiting for earlier runs in the queue.",
        "Wait until it starts, or remove it from the queue.",
    ),
    RunStatus.RUNNING: (
        "It is training.",
        "Try its adapter under Mix while it trains; pause it, or stop it and keep the adapter.",
    ),
    RunStatus.STOPPING: ("It is finishing the current step and will then save.", "Wait a moment."),
    RunStatus.PAUSED: (
        "A checkpoint is saved, and the model is free.",
        "Resume it at any time, even after a restart: the result is the same as without the pause.",
    ),
    RunStatus.DONE: (
        "It completed all its steps, or ended early because the validation loss stopped improving.",
        "Compare its adapter with the base, or mix it.",
    ),
    RunStatus.STOPPED: (
        "It was stopped, and its adapter is in the Library.",
        "Use its adapter, or resume the run to train it further.",
    ),
    RunStatus.DIVERGED: (
        "Its loss became NaN or infinite; the run ended before that step changed the adapter.",
        "Start a new run with a lower learning rate; resuming this one would repeat the same steps.",
    ),
    RunStatus.OUT_OF_MEMORY: (
        "A step did not fit in memory, even with one row at a time.",
        "Start a new run with one of the settings that the error suggests.",
    ),
    RunStatus.DISK_FULL: (
        "A checkpoint could not be written, and no partial checkpoint was left.",
        "Free some space, then resume the run from its last checkpoint.",
    ),
    RunStatus.INTERRUPTED: (
        "Its process ended before the run was finished.",
        "Resume it: it continues from its last checkpoint.",
    ),
    RunStatus.FAILED: (
        "It ended with an error.",
        "Follow the advice in the error; a run with a checkpoint can then be resumed.",
    ),
}


# Of a finished run whose adapter equals its base: (explanation, next step).
EQUALS_BASE = (
    "It completed its steps, but its adapter equals the base: training changed no answer.",
    "Start a new run with more steps or a higher learning rate.",
)


# Of a finished run whose adapter was measured on held-out rows: verdict -> (words for its status,
# explanation, next step). "better" needs none.
VERDICT_TEXTS: dict[str, tuple[str, str, str]] = {
    "unclear": (
        "not better than the base",
        "It completed its steps, but on held-out rows its adapter is not better than the base: "
        "the difference is within chance.",
        "Add examples, or start a new run with more steps or a higher learning rate.",
    ),
    "worse": (
        "worse than the base",
        "It completed its steps, but on held-out rows its adapter is worse than the base.",
        "Start a new run with a lower learning rate, and check that its examples say what you want.",
    ),
}
# Of a finished run whose validation loss was still falling: (words for its status, explanation, next step).
STILL_LEARNING = (
    "still learning",
    "It was still learning when it ended: its validation loss was still falling.",
    "Train on for about {steps} more steps.",
)


@dataclass(frozen=True)
class TrainSpec(Settings):
    """The settings that determine the result of a training run.

    The same settings, data and machine give the same losses.
    """

    kind: str = setting(
        "domain",
        "A domain adapter trains on plain text; a task adapter trains on prompts with answers.",
        choices=KINDS,
    )
    name: str = setting("", "Name of the adapter in the Library.", high=120)
    dataset: str = setting("", "Dataset to train on.", high=64)
    stack_on: str = setting(
        "",
        "Parent adapter: it stays frozen and active while the new adapter trains on top of it.",
        high=64,
        label="Train on top of",
    )
    epochs: float = setting(3.0, "Passes over the training split.", low=0.01, high=1000)
    max_steps: int = setting(
        0, "Ends the run after this many optimizer steps; 0 trains for all epochs.", low=0, high=1_000_000
    )
    learning_rate: float = setting(
        2e-4, "Peak learning rate, reached at the end of the warm-up.", low=1e-7, high=0.1
    )
    batch_size: int = setting(
        4, "Sequences per forward pass; more are faster but need more memory.", low=1, high=256
    )
    accumulation: int = setting(
        4,
        "Forward passes per optimizer step; the effective batch size is the batch size times this.",
        low=1,
        high=256,
        label="Gradient accumulation",
    )
    max_length: int = setting(
        512,
        "Maximum sequence length in tokens; longer examples are truncated, longer texts are split.",
        low=16,
        high=32768,
    )
    rank: int = setting(
        16, "Rank of the update; a higher rank can learn more but needs more memory.", low=1, high=256
    )
    alpha: int = setting(
        32, "Scaling of the update: it is multiplied by alpha divided by the rank.", low=1, high=1024
    )
    dropout: float = setting(
        0.1,
        "Dropout probability of the inputs of the adapter during training.",
        low=0.0,
        high=0.9,
        label="LoRA dropout",
    )
    target_modules: tuple[str, ...] = setting(
        (),
        "Layers that get an adapter, by name, or as the groups attention and down (the feed-forward's last "
        "projection); empty selects the usual layers of the model family.",
    )
    warmup_ratio: float = setting(
        0.03, "Share of the steps during which the learning rate rises to its peak.", low=0.0, high=0.9
    )
    schedule: str = setting("cosine", "How the learning rate changes after the warm-up.", choices=SCHEDULES)
    weight_decay: float = setting(
        0.0, "Weight decay: how strongly each step pulls the adapter weights towards zero.", low=0.0, high=1.0
    )
    domain_dropout: float = setting(
        0.5,
        "Share of forward passes without the parent adapter, so that each adapter also works alone.",
        low=0.0,
        high=0.95,
    )
    replay_share: float = setting(
        0.0,
        "Share of general text in the training data, so that the model does not forget general language.",
        low=0.0,
        high=0.9,
    )
    replay_dataset: str = setting(
        "", "Text dataset to replay; empty uses the general text that comes with the studio.", high=64
    )
    seed: int = setting(
        SEED, "Seed for the data order, the initial weights and the dropout.", low=0, high=2**31 - 1
    )
    save_steps: int = setting(
        0, "Steps between checkpoints; 0 saves about ten per run.", low=0, high=1_000_000
    )
    eval_steps: int = setting(
        0, "Steps between validations; 0 validates about ten times per run.", low=0, high=1_000_000
    )
    packing: bool = setting(
        True,
        "Packs short sequences together into rows, without attention between them; off pads every sequence.",
    )
    overlap: int = setting(0, "Tokens that two consecutive windows of a long text share.", low=0, high=16384)
    use_rslora: bool = setting(
        False,
        "Scales by alpha over the square root of the rank, so that high ranks learn as fast as low ones.",
        label="Rank-stabilised (rsLoRA)",
    )
    use_dora: bool = setting(
        False,
        "Trains magnitude and direction of the weights separately; slower, and mixed only after its run.",
        label="DoRA",
    )
    initialisation: str = setting(
        "default",
        "Initial weights of the adapter; all but the default are converted to plain LoRA at the end.",
        choices=INITIALISATIONS,
    )
    lora_plus_ratio: float = setting(
        1.0,
        "Learning rate of B divided by that of A (LoRA+); 1 is plain LoRA, 16 is usual.",
        low=1.0,
        high=64.0,
        label="LoRA+ ratio",
    )
    neftune_alpha: float = setting(
        0.0,
        "Noise on the input embeddings during training (NEFTune); 0 adds none, 5 is usual.",
        low=0.0,
        high=50.0,
        label="NEFTune noise",
    )
    optimizer: str = setting(
        "auto",
        "Optimizer of the adapter; 8-bit ones save memory on a GPU, and auto chooses by device.",
        choices=OPTIMIZERS,
    )
    gradient_checkpointing: str = setting(
        "auto",
        "Recomputes activations in the backward pass to save memory; auto does this on a GPU.",
        choices=CHECKPOINTING_MODES,
    )
    early_stopping: int = setting(
        0,
        "Ends the run after this many validations without a better loss; 0 switches this off.",
        low=0,
        high=1000,
    )
    keep: str = setting(
        "best",
        "Which adapter is saved at the end: the one with the lowest validation loss, or the last.",
        choices=KEEP_CHOICES,
    )
    experts: bool = setting(
        False,
        "Also trains the experts of a mixture-of-experts base, which adds many trainable weights.",
        label="Train the experts",
    )
    report_to: tuple[str, ...] = setting(
        (), "Trackers that also receive the losses: tensorboard, trackio or wandb, if installed."
    )
    sample_prompts: tuple[str, ...] = setting(
        (),
        "Prompts that the adapter answers at every validation; empty uses one from the validation split.",
    )
    rules: int = setting(
        RULES,
        f"Version of the training rules: {RULES} is the present one, and 1 trains as version 0.1.0 did.",
        low=1,
        high=RULES,
        label="Training rules",
    )
    continue_from: str = setting(
        "",
        "Id of a finished run whose adapter is trained further, with its optimizer state where it is stored.",
        high=64,
        label="Train on from",
    )

    @classmethod
    def from_record(cls, value: dict[str, Any]) -> TrainSpec:
        """Settings that were stored with a run, grid or bundle; those of 0.1.0 name no rules, which means 1.

        Raises:
            SpecError: an unknown field, a wrong type, or a value outside its limits.
        """
        return cls.from_json({"rules": 1, **value} if isinstance(value, dict) else value)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts and self.dropout:  # peft refuses this combination too
            raise SpecError(
                f"LoRA dropout must be 0 when experts are trained, got {self.dropout:g}.",
                "Set LoRA dropout to 0, or do not train the experts.",
            )
        if self.use_dora and self.initialisation != "default":
            raise SpecError(
                f"The initialisation of a DoRA adapter must be default, got {self.initialisation}.",
                "Choose the default initialisation, or switch DoRA off.",
            )
        if self.use_dora and self.stack_on:
            raise SpecError(
                "A DoRA adapter cannot be mixed while it trains, so it is not trained on top of another one.",
                "Switch DoRA off, or train on the base alone.",
            )

    def has_gradient_checkpointing(self, on_gpu: bool) -> bool:
        """Whether activations are recomputed on such a device."""
        return self.gradient_checkpointing == "on" or (self.gradient_checkpointing == "auto" and on_gpu)

    @property
    def effective_batch(self) -> int:
        """Sequences per optimizer step."""
        return self.batch_size * self.accumulation


def describe_expert_training(weights_per_rank: int, rank: int, parameters: int) -> str:
    """What it costs to train the experts of a base, for the user.

    Args:
        weights_per_rank: trainable weights of all experts at rank 1.
        parameters: of the base.
    """
    count = weights_per_rank * rank
    share = count / max(parameters, 1)
    return (
        f"At rank {rank}, the experts have {count:,} trainable weights ({share:.2%} of the base). "
        "Such an adapter can be mixed live. It cannot be baked or compared layer by layer, "
        "and peft's add_weighted_adapter refuses it. "
        "Every step computes a full-size update for the experts of each layer."
    )


@dataclass(frozen=True)
class Launch(Settings):
    """The processes that train a run. They change its speed, not its result."""

    launcher: str = setting(
        "",
        "Program that starts several training processes; empty trains in the process of the studio.",
        choices=LAUNCHERS,
    )
    nproc: int = setting(
        1, "Processes on this machine, usually one per GPU.", low=1, high=64, label="Processes"
    )
    nnodes: int = setting(
        1,
        "Machines that train together; all of them must see the same workspace folder.",
        low=1,
        high=64,
        label="Machines",
    )
    node_rank: int = setting(
        0, "Rank of this machine; the first one has rank 0.", low=0, high=63, label="Machine rank"
    )
    rdzv_endpoint: str = setting(
        "",
        "Address of the first machine as host:port, the same on all machines.",
        high=200,
        label="Rendezvous endpoint",
    )
    sharding: str = setting(
        "ddp",
        "ddp keeps the whole base in every process; fsdp shards it, for bases too large for one GPU.",
        choices=SHARDINGS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.node_rank >= self.nnodes:
            raise SpecError(
                f"Machine rank must be between 0 and {self.nnodes - 1}, got {self.node_rank}.",
                "Use a different rank on each machine, starting at 0.",
            )
        if self.nnodes > 1 and not re.fullmatch(r"[\w.-]+:\d{1,5}", self.rdzv_endpoint):
            raise SpecError(
                f"Rendezvous endpoint must be host:port, got {self.rdzv_endpoint!r}.",
                "Use the address of the first machine, the same on all machines.",
            )
        if not self.launcher and self.world_size > 1:
            raise SpecError(
                f"Training with {self.world_size} processes needs a launcher.",
                f"Choose one of: {', '.join(LAUNCHERS[1:])}.",
            )

    @property
    def world_size(self) -> int:
        """Processes on all machines together."""
        return self.nproc * self.nnodes
