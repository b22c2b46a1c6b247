"""Settings: frozen dataclasses with limits and help texts. Imports no torch."""
