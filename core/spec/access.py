"""Roles: what a person or a program may do, from the page, the API and the terminal alike."""

from __future__ import annotations

import enum


class Role(enum.IntEnum):
    """What a principal may do; each role may do everything that the one before it may."""

    NONE = 0  # not signed in: health addresses only
    VIEWER = 1  # prompt, mixes, compare, vote
    TRAINER = 2  # datasets and runs
    OWNER = 3  # delete, export, base, keys

    @property
    def label(self) -> str:
        """The word that users read and write: "viewer", "trainer", "owner"."""
        return self.name.lower()


ROLES = tuple(role.label for role in Role if role > Role.NONE)  # that a key or a user can have
