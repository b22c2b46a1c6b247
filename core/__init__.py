"""Adapter Studio without its page: data, base models, adapters, mixes, training, evaluation and merging.

`core.engine.Engine` is the entry point for Python, `python -m core` for the terminal. Gradio is never
imported here.
"""

__version__ = "0.1.0"
