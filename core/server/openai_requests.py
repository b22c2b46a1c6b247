"""Requests of OpenAI's API: what their fields may hold, and how they become requests of the engine.

A field of OpenAI's that would change the answer and is not implemented (`tools`, `logit_bias`, ...) is
refused by its name unless it has its default; one that cannot change it (`user`, `metadata`, ...) is ignored;
any other field is refused, as OpenAI does, so that a misspelled `temperature` is noticed.
"""

from __future__ import annotations

import difflib
import json
import re
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from core.engine.retrieval import DATASET_LIMIT
from core.engine.serving import CHOICE_LIMIT, TOP_LIMIT
from core.engine.serving import Request as EngineRequest
from core.errors import SpecError
from core.retrieve.passages import Passage
from core.server.model_names import DOCUMENTS, Model
from core.server.problems import Problem
from core.spec.mix import NEW_TOKENS_LIMIT, Sampling
from core.spec.retrieval import PASSAGE_LIMIT
from core.store.json_text import parse_object

MESSAGE_LIMIT = 1024  # messages of a conversation
PROMPTS_LIMIT = 64  # prompts of one request for completions
STOP_LIMIT, STOP_LENGTH = 16, 200  # stop strings, and characters of each
MODEL_LENGTH = 2000  # characters
DATASET_LENGTH = 200  # characters of the id or name of a dataset
ALL = "all"  # `documents` of every dataset of texts
SEED_LIMIT = 2**31  # seeds of `Sampling` are below it
COMPLETION_TOKENS = 16  # OpenAI's default for completions; a chat answer may fill the context

# Fields that change nothing here.
IGNORED = frozenset(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    )
)
# Fields that would change the answer: the values that change nothing, and what is said of others.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "frequency_penalty": ((None, 0), "Use `repetition_penalty` (1 changes nothing)."),
    "presence_penalty": ((None, 0), "Use `repetition_penalty` (1 changes nothing)."),
    "logit_bias": ((None, {}), "Leave it out."),
    "tools": ((None, []), "Leave it out; tools cannot be called."),
    "tool_choice": ((None, "none", "auto"), "Leave it out; tools cannot be called."),
    "functions": ((None, []), "Leave it out; functions cannot be called."),
    "function_call": ((None, "none", "auto"), "Leave it out; functions cannot be called."),
    "response_format": ((None, {"type": "text"}), 'Leave it out, or use {"type": "text"}.'),
    "modalities": ((None, ["text"]), 'Leave it out, or use ["text"].'),
    "audio": ((None,), "Leave it out; answers are texts."),
    "prediction": ((None,), "Leave it out."),
    "web_search_options": ((None,), "Leave it out."),
    "verbosity": ((None, "medium"), "Leave it out."),
    "best_of": ((None, 1), "Use `n`."),
    "echo": ((None, False), "Leave it out; the prompt is not repeated."),
    "documents": ((None, False), "Use /v1/chat/completions: documents answer questions."),
    "passages": ((None,), "Use /v1/chat/completions: documents answer questions."),
    "suffix": ((None, ""), "Leave it out; texts are continued at their end."),
}


_JSON_TYPE = re.compile(r"application/([\w.-]+\+)?json *(;|$)", re.IGNORECASE)


class StrictRoute(APIRoute):
    """A route whose body is strict JSON: one object, finite numbers, whole characters, little nesting."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def check_body(request: Request) -> Response:
            if request.method == "POST":
                if not _JSON_TYPE.match(request.headers.get("content-type", "")):
                    raise Problem(415, "The body must be JSON.", "Send `Content-Type: application/json`.")
                check_json(await request.body())
            return await handle(request)

        return check_body


def check_json(body: bytes) -> None:
    """Checks that a body is one JSON object that the studio can use.

    Raises:
        Problem: 422.
    """
    try:
        parse_object(body)
        if b"NaN" in body or b"Infinity" in body:
            json.loads(body, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except UnicodeEncodeError:
        reason = "a text holds half of a character"
    except ValueError as e:
        reason = str(e)
    else:
        return
    raise Problem(422, f"The body must be one JSON object: {reason}.", "Correct the body.")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _one_or_several(kind: str) -> WithJsonSchema:
    """The schema of a field that may be one value or a list; before validation, one becomes a list of one."""
    return WithJsonSchema({"anyOf": [{"type": kind}, {"type": "array", "items": {"type": kind}}]})


Documents = Annotated[
    bool | list[str],
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "boolean"},
                {"type": "string", "minLength": 1, "maxLength": DATASET_LENGTH},
                {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": DATASET_LENGTH},
                    "minItems": 1,
                    "maxItems": DATASET_LIMIT,
                },
            ]
        }
    ),
]
Stop = Annotated[str, Field(min_length=1, max_length=STOP_LENGTH)]


class StreamOptions(BaseModel):
    """What a stream holds beside the text."""

    model_config = ConfigDict(strict=True)
    include_usage: bool | None = None


class SampledRequest(BaseModel):
    """What both kinds of requests hold. A field that is null has its default."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    KNOWN_AS: ClassVar[dict[str, str]] = {"max_new_tokens": "max_tokens"}  # field of Sampling -> ours

    model: str = Field(min_length=1, max_length=MODEL_LENGTH, examples=["base", "mix:notes=0.7,answers=1"])
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=CHOICE_LIMIT)
    max_tokens: int | None = Field(None, ge=1, le=NEW_TOKENS_LIMIT)
    temperature: float | None = Field(None, ge=0, le=4, description="1 where it is left out, as with OpenAI.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=100_000, description="Not in OpenAI's API.")
    repetition_penalty: float | None = Field(None, ge=0.5, le=3, description="Not in OpenAI's API.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Modulo 2**31; random if left out.")
    stop: Annotated[list[Stop], Field(max_length=STOP_LIMIT), _one_or_several("string")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return cls._prepare(_select_fields(value, cls)) if isinstance(value, dict) else value

    @classmethod
    def _prepare(cls, value: dict[str, Any]) -> dict[str, Any]:
        """The fields in the form that is validated."""
        stop = value.get("stop")
        return {**value, "stop": [stop]} if isinstance(stop, str) else value

    @property
    def longest(self) -> int:
        """The longest answer, in tokens."""
        raise NotImplementedError

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def make_sampling(self) -> Sampling:
        """The sampling of the first choice.

        Raises:
            SpecError: a value is outside its limits.
        """
        try:
            return Sampling(
                max_new_tokens=self.longest,
                temperature=1.0 if self.temperature is None else self.temperature,
                top_k=self.top_k or 0,
                top_p=1.0 if self.top_p is None else max(self.top_p, 0.01),
                repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
                seed=secrets.randbelow(SEED_LIMIT) if self.seed is None else self.seed % SEED_LIMIT,
                stop=tuple(self.stop or ()),
            )
        except SpecError as e:
            raise e.at(self.KNOWN_AS.get(e.field, e.field)) from None


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str,
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                            "required": ["type", "text"],
                        },
                    },
                ]
            }
        ),
    ]


class ChatRequest(SampledRequest):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=MESSAGE_LIMIT)
    max_completion_tokens: int | None = Field(None, ge=1, le=NEW_TOKENS_LIMIT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=TOP_LIMIT)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="Anything but none: bases that think write a thought first."
    )
    documents: Documents | None = Field(
        None,
        description="Datasets of texts to answer from, by id or name; true is all of them, and so is a model "
        f"whose name ends in {DOCUMENTS}. Not in OpenAI's API.",
    )
    passages: int | None = Field(
        None, ge=1, le=PASSAGE_LIMIT, description="Most passages of an answer from documents."
    )

    @classmethod
    def _prepare(cls, value: dict[str, Any]) -> dict[str, Any]:
        value = super()._prepare(value)
        if "documents" in value:
            value = {**value, "documents": _read_documents(value["documents"])}
        messages = value.get("messages")
        if isinstance(messages, list):
            value = {**value, "messages": [_join_parts(m, i) for i, m in enumerate(messages)]}
        return value

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise Problem(422, "`top_logprobs` needs `logprobs`.", "Set `logprobs` to true.", "top_logprobs")
        if not self.messages[-1].content.strip():
            raise Problem(422, "The last message is empty.", "Write a question.", "messages")
        return self

    @property
    def longest(self) -> int:
        return self.max_completion_tokens or self.max_tokens or NEW_TOKENS_LIMIT

    def make_requests(
        self, model: Model, caller: str, request_id: str, passages: Sequence[Passage] | None = None
    ) -> list[EngineRequest]:
        """The one request of the engine.

        Args:
            caller: the name of the principal.
            request_id: of the response.
            passages: to answer from; None for an answer without documents.

        Raises:
            SpecError: a value is outside its limits.
        """
        return [
            EngineRequest(
                [{"role": m.role, "content": m.content} for m in self.messages],
                model.mix,
                self.make_sampling(),
                choices=self.n or 1,
                top_tokens=(self.top_logprobs or 0) if self.logprobs else None,
                thinking=self.reasoning_effort not in (None, "none"),
                follows=bool(self.stream),
                caller=caller,
                id=request_id,
                falls_back=model.falls_back,
                fallback=model.fallback,
                passages=None if passages is None else tuple(passages),
            )
        ]


class CompletionRequest(SampledRequest):
    """`POST /v1/completions`."""

    prompt: Annotated[list[str], Field(min_length=1, max_length=PROMPTS_LIMIT), _one_or_several("string")]
    logprobs: int | None = Field(None, ge=0, le=TOP_LIMIT)

    @classmethod
    def _prepare(cls, value: dict[str, Any]) -> dict[str, Any]:
        value = super()._prepare(value)
        prompt = value.get("prompt")
        if isinstance(prompt, str):
            return {**value, "prompt": [prompt]}
        if isinstance(prompt, list) and any(not isinstance(p, str) for p in prompt):
            raise Problem(
                422, "`prompt` must be a text or a list of texts.", "Send texts, not token ids.", "prompt"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        if any(not prompt.strip() for prompt in self.prompt):
            raise Problem(422, "The prompt is empty.", "Write the beginning of a text.", "prompt")
        return self

    @property
    def longest(self) -> int:
        return self.max_tokens or COMPLETION_TOKENS

    def make_requests(
        self, model: Model, caller: str, request_id: str, passages: Sequence[Passage] | None = None
    ) -> list[EngineRequest]:
        """A request of the engine for each prompt; each is answered `n` times.

        Args:
            caller: the name of the principal.
            request_id: of the response.
            passages: None, since texts are continued without documents.

        Raises:
            SpecError: a value is outside its limits.
        """
        sampling = self.make_sampling()
        return [
            EngineRequest(
                p,
                model.mix,
                sampling,
                chat=False,
                choices=self.n or 1,
                top_tokens=self.logprobs,
                follows=bool(self.stream),
                caller=caller,
                id=request_id if len(self.prompt) == 1 else f"{request_id}-{number}",
                falls_back=model.falls_back,
                fallback=model.fallback,
            )
            for number, p in enumerate(self.prompt)
        ]


# --- before validation


def _select_fields(value: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """The fields of a request without the ignored ones; a field that is null is left out.

    Raises:
        Problem: 422, a field is unknown, or is not implemented and does not have its default.
    """
    selected = {}
    for name, content in value.items():
        if name in REFUSED and name not in kind.model_fields:
            defaults, fix = REFUSED[name]
            if not any(content == default for default in defaults):
                raise Problem(422, f"`{name}` is not implemented.", fix, name)
        elif name not in kind.model_fields and name not in IGNORED:
            near = difflib.get_close_matches(name, kind.model_fields, 1)
            fix = f"Did you mean `{near[0]}`?" if near else "Leave it out."
            raise Problem(422, f"The field {name[:40]!r} is unknown.", fix, name[:40])
        elif name in kind.model_fields and content is not None:
            selected[name] = content
    return selected


def _read_documents(given: Any) -> bool | list[str]:
    """Datasets of a request: true for all, or a list of ids and names.

    Raises:
        Problem: 422, it is something else.
    """
    if isinstance(given, str) and given == ALL:
        return True
    chosen = [given] if isinstance(given, str) else given
    if isinstance(chosen, bool):
        return chosen
    if (
        not isinstance(chosen, list)
        or not 1 <= len(chosen) <= DATASET_LIMIT
        or not all(isinstance(name, str) and 1 <= len(name) <= DATASET_LENGTH for name in chosen)
    ):
        what = f"`documents` must be true, the id or name of a dataset, or a list of 1 to {DATASET_LIMIT}."
        raise Problem(422, what, "See the names under Data.", "documents")
    return chosen


def _join_parts(message: Any, index: int) -> Any:
    """A message whose content is one text.

    Raises:
        Problem: 422, a part of it is not a text.
    """
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    texts = []
    for part in message["content"]:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise Problem(
                422,
                "A part of a message's content must be a text.",
                'Send {"type": "text", "text": ...}; images, sounds and files cannot be read.',
                f"messages.{index}.content",
            )
        texts.append(part["text"])
    return {**message, "content": "\n".join(texts)}
