"""The studio for other programs, over HTTP and without Gradio: OpenAI's API, REST, MCP."""
