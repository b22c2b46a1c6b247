"""Every record on disk: the workspace, its files and their formats. Imports no torch."""
