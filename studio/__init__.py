"""The studio's page: Gradio Blocks over `core.engine`. Knows pages and browsers; knows nothing of tensors."""
