"""The engine: one object whose nouns own the verbs that page, terminal and scripts call."""

from core.engine.engine import Engine as Engine
