"""A Hugging Face Space of the studio: the folder that is pushed, and what a Space does at its start."""
