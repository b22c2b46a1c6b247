"""The engine of Adapter Studio: data, base models, adapters, mixes, training and evaluation.

Imports no Gradio. Enter through `core.engine.Engine` or `python -m core`.
"""

__version__ = "0.1.0"
