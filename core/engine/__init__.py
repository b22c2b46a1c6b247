"""The engine: the one object through which the page, the terminal and scripts use the studio."""

from core.engine.engine import Engine as Engine
