"""Document formats (PDF, DOCX, EPUB, HTML, RST, Markdown, text) to blocks and sections."""
