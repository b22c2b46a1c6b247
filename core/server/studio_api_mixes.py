"""Mixes in requests of the REST API: any name that `core.server.model_names` reads, also without `mix:`."""

from __future__ import annotations

import re
from dataclasses import replace

from core.engine import Engine
from core.engine.mix_names import NAME_LIMIT
from core.server.model_names import BASE, PREFIX, ModelNotFound, find_model
from core.spec.mix import Mix


def find_mix(engine: Engine, text: str) -> Mix:
    """The mix that a text names; its name is the text.

    Args:
        text: "" or "base", id or name of a saved mix or an adapter, "auto", or "domain=0.7,task=1@-1".

    Raises:
        Problem, SpecError: see `find_model`.
    """
    name = text.strip() or BASE
    try:
        mix = find_model(engine, name).mix
    except ModelNotFound:
        if not re.search("[=,+@]", name):
            raise
        mix = find_model(engine, PREFIX + name).mix
    return replace(mix, name=name[:NAME_LIMIT])
