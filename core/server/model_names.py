"""The `model` of a request as a mix: what it may be called, and what the list of models says about each.

```
base                         the base alone
notes-1f3a, Notes            an adapter, by its id or by a name that only it has
tone-77c0, Tone              a saved mix, by its id or its name
mix:notes=0.7,answers@-1     any weights and tilts, as `Mix.parse` reads them; auto as a weight is a gate
auto                         every adapter whose gate works, each on Auto
production                   the mix that was promoted last (`core.engine.promotions`)
NAME+documents               any of them, answering from all documents: OpenAI's routes only
```

Where a name with "+documents" names something as a whole (an item that is called so, a mix with an adapter
"documents"), it is that.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.engine import Engine
from core.engine.library import MixableAdapter
from core.errors import SpecError
from core.server.problems import Problem
from core.spec.mix import Mix
from core.spec.promotion import PRODUCTION
from core.store.mixes import SavedMix

BASE, AUTO, PREFIX = "base", "auto", "mix:"
DOCUMENTS = "+documents"
NEAREST = 5  # names that an error lists
NAME_SHOWN = 40  # characters of a name that an error quotes
PROMOTE_AGAIN = "Promote it again, or roll back."
CALIBRATE = "Calibrate it under Library, or with `python -m core adapters calibrate`."


@dataclass(frozen=True)
class Model:
    """A mix under a name.

    Attributes:
        id: the name that stands for it in any request.
        kind: "base", "domain", "task", "mix", "auto" or "production".
        created: Unix seconds; 0 where it is not known.
        parents: ids of adapters: those of the mix, or the adapter that this one was trained on.
        digests: adapter id -> sha256 of its weights, where known.
        falls_back: whether the base answers where an adapter is missing or damaged: for names under which
            others expect an answer, those of saved mixes and of what is promoted.
        fallback: why the mix is the base in place of its own, or "".
        has_documents: whether it answers from the documents of the workspace.
    """

    id: str
    name: str
    kind: str
    mix: Mix
    created: float = 0.0
    parents: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    falls_back: bool = False
    fallback: str = ""
    has_documents: bool = False

    def add_documents(self) -> Model:
        """The same mix, answering from documents."""
        return replace(self, id=self.id + DOCUMENTS, name=f"{self.name} with documents", has_documents=True)

    def to_json(self) -> dict[str, Any]:
        """A model in OpenAI's form; the members after `owned_by` are the studio's own."""
        return {
            "id": self.id,
            "object": "model",
            "created": int(self.created),
            "owned_by": "adapter-studio",
            "name": self.name,
            "kind": self.kind,
            "parents": list(self.parents),
            "weights": self.mix.weights,
            "tilt": self.mix.tilt,
            "auto": self.mix.auto,
            "documents": self.has_documents,
            "digests": dict(self.digests),
        }


class ModelNotFound(Problem):
    """No model has this name; OpenAI's code for it is "model_not_found"."""

    def to_json(self) -> dict[str, Any]:
        value = super().to_json()
        value["error"]["code"] = "model_not_found"
        return value


def list_models(engine: Engine) -> list[Model]:
    """The base, Auto, what is promoted, and every adapter and saved mix that can be mixed now."""
    return _Names(engine).models


def list_answering_models(engine: Engine) -> list[Model]:
    """As `list_models`; where the workspace has documents, each again, answering from these."""
    models = list_models(engine)
    if engine.retrieval.list_documents():
        models += [model.add_documents() for model in models]
    return models


def find_model(engine: Engine, text: str, falls_back: bool = False) -> Model:
    """The model of a name.

    Args:
        falls_back: whether a saved mix, or what is promoted, is offered although an adapter is missing or
            has changed; the base answers then (`Model.falls_back`, `Model.fallback`).

    Raises:
        ModelNotFound: the name is unknown (404). Problem: several items have it (422), or what it means
            cannot be mixed now (409). SpecError: a mix is not written as one, or a number is outside its
            limits.
    """
    text = text.strip()
    if text == BASE:
        return _BASE_MODEL
    names = _Names(engine, falls_back)
    if text == AUTO:
        return names.make_auto()
    if text == PRODUCTION and engine.promotions.current() is not None:
        return names.make_production()
    if text.startswith(PREFIX):
        return names.read_mix(text)
    return names.find(text)


def find_answering_model(engine: Engine, text: str, falls_back: bool = False) -> Model:
    """The model of a name, which may end in "+documents"; otherwise as `find_model`."""
    try:
        return find_model(engine, text, falls_back)
    except ModelNotFound:
        name = text.strip()
        if not name.endswith(DOCUMENTS):
            raise
    return find_model(engine, name.removesuffix(DOCUMENTS), falls_back).add_documents()


_BASE_MODEL = Model(BASE, "Base", "base", Mix())


class _Names:
    """Everything in a library that has a name, read once."""

    def __init__(self, engine: Engine, falls_back: bool = False) -> None:
        self._engine, self._falls_back = engine, falls_back
        self._adapters = {a.id: a for a in engine.library.mixable_adapters()}
        self._stored = {a.id: a for a in engine.library.adapters()}
        self._mixes = {m.id: m for m in engine.library.mixes()}

    @property
    def models(self) -> list[Model]:
        adapters = [self._describe_adapter(a) for a in self._adapters.values() if a.fits]
        mixes = [self._describe_mix(m) for m in self._mixes.values() if not self._find_obstacle(m.mix)]
        auto = [self.make_auto()] if self._list_with_gates() else []
        return [_BASE_MODEL, *auto, *self._list_production(), *adapters, *mixes]

    def _list_production(self) -> list[Model]:
        """What is promoted, where it can be used now."""
        try:
            return [self.make_production()]
        except Problem:
            return []

    def make_production(self) -> Model:
        """The mix that was promoted last.

        Raises:
            Problem: none is promoted, or an adapter of it has changed or cannot be mixed now.
        """
        current = self._engine.promotions.current()
        if current is None:
            raise _refuse_name("model", PRODUCTION, self._list_names())
        parents = tuple(current.weights)
        model = Model(
            PRODUCTION, current.name, PRODUCTION, current.mix, current.time, parents, current.digests,
            self._falls_back,
        )  # fmt: skip
        problem = self._find_change(current.mix, current.digests)
        if problem and self._falls_back:
            return replace(model, mix=Mix(name=current.mix.name), fallback=problem[0])
        if problem:
            raise Problem(409, *problem, "model")
        return model

    def _find_change(self, mix: Mix, digests: Mapping[str, str]) -> tuple[str, str] | None:
        """Why a promoted mix is not what was promoted any more, and what helps; None where it is."""
        if obstacle := self._find_obstacle(mix):
            return obstacle
        for adapter_id, digest in digests.items():
            if self._digests([adapter_id]).get(adapter_id) != digest:
                name = quote_name(self._adapters[adapter_id].name)
                return f"The adapter {name} has changed since it was promoted.", PROMOTE_AGAIN
        return None

    def make_auto(self) -> Model:
        """Every adapter whose gate works, on Auto.

        Raises:
            Problem: none has a calibration that works.
        """
        gated = self._list_with_gates()
        if not gated:
            raise Problem(
                409, "No adapter can be on Auto: none has a calibration that works.", CALIBRATE, "model"
            )
        ids = [a.id for a in gated]
        mix = Mix(weights=dict.fromkeys(ids, 1.0), auto=dict.fromkeys(ids, "hard"))
        return Model(AUTO, "Auto", "auto", mix, max(a.created for a in gated), tuple(ids), self._digests(ids))

    def read_mix(self, text: str) -> Model:
        """The model of `mix:` and weights."""
        try:
            mix = Mix.parse(text.removeprefix(PREFIX))
            ids = {a: self._find_adapter(a) for a in mix.weights}
            if len(set(ids.values())) < len(ids):
                raise SpecError("A mix names an adapter twice.", "Give each adapter one weight.")
        except SpecError as e:
            raise e.at("model") from None
        mix = Mix(
            weights={ids[a]: w for a, w in mix.weights.items()},
            tilt={ids[a]: t for a, t in mix.tilt.items()},
            auto={ids[a]: m for a, m in mix.auto.items()},
        )
        self._check(mix)
        parents = tuple(mix.weights)
        return Model(text, str(mix), "mix", mix, parents=parents, digests=self._digests(parents))

    def find(self, text: str) -> Model:
        """The adapter or saved mix with this id or name."""
        if text in self._adapters:
            return self._offer_adapter(self._adapters[text])
        if text in self._mixes:
            return self._offer_mix(self._mixes[text])
        adapters = [a for a in self._adapters.values() if a.name == text]
        mixes = [m for m in self._mixes.values() if m.name == text]
        if len(adapters) + len(mixes) > 1:
            raise _refuse_ambiguity(text, [*(a.id for a in adapters), *(m.id for m in mixes)])
        if adapters:
            return self._offer_adapter(adapters[0])
        if mixes:
            return self._offer_mix(mixes[0])
        raise _refuse_name("model", text, self._list_names())

    # --- checks

    def _find_adapter(self, text: str) -> str:
        """The id of an adapter of a mix."""
        if text in self._adapters:
            return text
        ids = [a.id for a in self._adapters.values() if a.name == text]
        if len(ids) > 1:
            raise _refuse_ambiguity(text, ids)
        if not ids:
            names = [n for a in self._adapters.values() for n in (a.id, a.name)]
            raise _refuse_name("adapter", text, names)
        return ids[0]

    def _offer_adapter(self, adapter: MixableAdapter) -> Model:
        model = self._describe_adapter(adapter)
        self._check(model.mix)
        return model

    def _offer_mix(self, saved: SavedMix) -> Model:
        missing = [a for a in saved.weights if a not in self._adapters]
        if missing and not self._falls_back:
            what = " ".join(saved.warnings) or f"The adapter {missing[0]!r} was deleted from the library."
            raise Problem(
                409,
                f"The mix {quote_name(saved.name)} cannot be used. {what}",
                "Restore the adapter from the trash, or save the mix without it.",
                "model",
            )
        if not missing:
            self._check(saved.mix)
        return replace(self._describe_mix(saved), falls_back=self._falls_back)

    def _check(self, mix: Mix) -> None:
        if obstacle := self._find_obstacle(mix):
            raise Problem(409, *obstacle, "model")

    def _find_obstacle(self, mix: Mix) -> tuple[str, str] | None:
        """Why a mix cannot be computed now, and what helps; None where it can."""
        for adapter_id in mix.weights:
            adapter = self._adapters.get(adapter_id)
            if adapter is None:
                return (
                    f"The adapter {adapter_id!r} was deleted from the library.",
                    "Restore it from the trash.",
                )
            name = quote_name(adapter.name)
            if not adapter.fits:
                return f"The adapter {name} cannot be mixed. {adapter.reason}", "Use another adapter or base."
            if adapter_id in mix.auto and not adapter.gate["usable"]:
                return f"The adapter {name} cannot be on Auto: {adapter.gate['reason']}.", CALIBRATE
        return None

    def _list_with_gates(self) -> list[MixableAdapter]:
        """Adapters that can be on Auto beside others."""
        return [a for a in self._adapters.values() if a.fits and not a.alone and a.gate["usable"]]

    # --- descriptions

    def _list_names(self) -> list[str]:
        adapters = [name for a in self._adapters.values() for name in (a.id, a.name)]
        mixes = [name for m in self._mixes.values() for name in (m.id, m.name)]
        return [BASE, *([AUTO] if self._list_with_gates() else []), *adapters, *mixes]

    def _digests(self, ids: Iterable[str]) -> dict[str, str]:
        return {a: self._stored[a].sha256 for a in ids if a in self._stored}

    def _describe_adapter(self, adapter: MixableAdapter) -> Model:
        stored = self._stored.get(adapter.id)
        parents = (stored.stacked_on,) if stored and stored.stacked_on else ()
        mix = Mix(weights={adapter.id: 1.0})
        return Model(
            adapter.id, adapter.name, adapter.kind, mix, adapter.created, parents, self._digests([adapter.id])
        )

    @staticmethod
    def _describe_mix(saved: SavedMix) -> Model:
        return Model(
            saved.id, saved.name, "mix", saved.mix, saved.created, tuple(saved.weights), saved.adapters
        )


def quote_name(text: str) -> str:
    """A name as an error shows it."""
    return repr(text if len(text) <= NAME_SHOWN else text[: NAME_SHOWN - 1] + "…")


def _refuse_ambiguity(text: str, ids: Sequence[str]) -> Problem:
    listed = ", ".join(ids[:NEAREST])
    return Problem(
        422, f"Several items are called {quote_name(text)}.", f"Use one of their ids: {listed}.", "model"
    )


def _refuse_name(what: str, text: str, names: Sequence[str]) -> ModelNotFound:
    """The problem of an unknown name, with the names nearest to it, or the first ones where none is near."""
    spelled = {name.casefold(): name for name in reversed(names)}
    near = [spelled[n] for n in difflib.get_close_matches(text.casefold(), spelled, NEAREST, 0.5)]
    listed = ", ".join(quote_name(name) for name in near or dict.fromkeys(names[:NEAREST]))
    begin = "The nearest names" if near else "Names that it has"
    fix = f"{begin}: {listed}." if listed else ""
    return ModelNotFound(404, f"The studio has no {what} {quote_name(text)}.", fix, "model")
