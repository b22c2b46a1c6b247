"""The tools of MCP: what a language model may do with the studio, each with the role that it needs.

A tool is a function over the engine with typed arguments. `core.server.mcp_endpoint` publishes them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from core.engine import Engine
from core.server.access import Role
from core.server.mcp_mix_tools import (
    DocumentSearch,
    Explanation,
    MixComparison,
    Report,
    WeightSearch,
    compare_mixes,
    explain_token,
    learn_weights,
    search_texts,
)
from core.server.mcp_run_tools import (
    NoArguments,
    RunId,
    Training,
    list_adapters,
    read_run,
    start_training,
    stop_run,
)

A = TypeVar("A", bound=BaseModel)


@dataclass(frozen=True)
class Tool(Generic[A]):
    """A tool.

    Attributes:
        role: that its caller needs.
        description: for the language model that chooses tools.
        arguments: the model of its arguments.
        run: does the work; receives the engine, the arguments, and a function for progress.
        is_reading: it changes nothing.
    """

    name: str
    role: Role
    description: str
    arguments: type[A]
    run: Callable[[Engine, A, Report], Awaitable[BaseModel]]
    is_reading: bool = True


TOOLS: dict[str, Tool[Any]] = {
    tool.name: tool
    for tool in (
        Tool(
            "list_adapters",
            Role.VIEWER,
            "Lists the resident base model, the LoRA adapters that can be mixed on it, and saved mixes.",
            NoArguments,
            list_adapters,
        ),
        Tool(
            "start_training",
            Role.TRAINER,
            "Queues the training of a LoRA adapter on a dataset and returns the run at once.",
            Training,
            start_training,
            is_reading=False,
        ),
        Tool(
            "run_status",
            Role.VIEWER,
            "Shows the status, progress and newest events of a training run.",
            RunId,
            read_run,
        ),
        Tool(
            "stop_run",
            Role.TRAINER,
            "Stops one training run after its current step and keeps its adapter; needs the id of the run.",
            RunId,
            stop_run,
            is_reading=False,
        ),
        Tool(
            "compare_mixes",
            Role.VIEWER,
            "Answers one prompt with several weighted mixes of adapters, side by side in one batch.",
            MixComparison,
            compare_mixes,
        ),
        Tool(
            "search_documents",
            Role.VIEWER,
            "Finds passages in the documents of the workspace; an empty list means that nothing was found.",
            DocumentSearch,
            search_texts,
        ),
        Tool(
            "learn_weights",
            Role.VIEWER,
            "Learns the weights of adapters that suit a dataset best; takes seconds to minutes.",
            WeightSearch,
            learn_weights,
        ),
        Tool(
            "explain_token",
            Role.VIEWER,
            "Explains an answer token by token: how many nats each adapter of a mix adds to each token.",
            Explanation,
            explain_token,
        ),
    )
}
