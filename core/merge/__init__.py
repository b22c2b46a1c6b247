"""The composing trade: making one adapter out of several."""
