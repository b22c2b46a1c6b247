"""The texts of a Space: README with the front matter that the Hub reads, app.py, requirements, attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from core.errors import SpecError
from core.space.selection import Selection
from core.space.zero_gpu import SECONDS_VARIABLE
from core.store.base_models import HUB_ID
from core.store.workspace import check_name

PYTHON = "3.11"
# The names of `suggested_hardware`: https://huggingface.co/docs/hub/spaces-config-reference
HARDWARE = (
    "cpu-basic",
    "cpu-upgrade",
    "zero-a10g",
    "t4-small",
    "t4-medium",
    "l4x1",
    "l4x4",
    "l40sx1",
    "l40sx4",
    "l40sx8",
    "a10g-small",
    "a10g-large",
    "a10g-largex2",
    "a10g-largex4",
    "a100-large",
)
ZERO = "zero-a10g"
ZERO_PIN = "spaces==0.51.3"
ZERO_PYTHON = "3.10.13"  # that the Hub's documentation of ZeroGPU names
DESCRIPTION = "Mixes of LoRA adapters, side by side"  # at most 60 characters
ATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in ("safetensors", "woff2")
)


@dataclass(frozen=True)
class SpaceSpec:
    """The settings of a Space.

    Attributes:
        title: what its page on the Hub shows.
        hardware: one of HARDWARE; the owner of the Space assigns it there.
    """

    title: str = "Adapter Studio"
    hardware: str = HARDWARE[0]

    def __post_init__(self) -> None:
        check_name(self.title)
        if self.hardware not in HARDWARE:
            raise SpecError(f"The hardware must be one of {', '.join(HARDWARE)}, got {self.hardware!r}.").at(
                "hardware"
            )


def format_readme(spec: SpaceSpec, base: str, selection: Selection, gradio_version: str) -> str:
    """The README of a Space."""
    front: dict[str, Any] = {
        "title": spec.title.strip(),
        "emoji": "🎚️",
        "colorFrom": "indigo",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": gradio_version,
        "python_version": ZERO_PYTHON if spec.hardware == ZERO else PYTHON,
        "app_file": "app.py",
        "suggested_hardware": spec.hardware,
        "hf_oauth": True,  # users sign in with their account: the owner of the Space is the owner here
        "license": "apache-2.0",
        "short_description": DESCRIPTION,
    }
    if HUB_ID.fullmatch(base):
        front |= {"models": [base], "preload_from_hub": [base]}
    matter = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    items = [f"- adapter **{_escape(a.name)}** ({a.kind}, rank {a.rank})" for a in selection.adapters]
    items += [f"- mix **{_escape(m.name)}**" for m in selection.mixes]
    listed = "\n".join(items) or "- no adapters yet: sign in as the owner, and train or import some"
    return f"""---
{matter}---

# {_escape(spec.title.strip())}

[Adapter Studio](LICENSE) on the base `{base}`: LoRA adapters, mixed live and compared side by side.

{listed}

**Visitors** may prompt, mix, compare and vote. They see no rows of datasets, and cannot train or delete.

**Sign in with Hugging Face**, and the owner of this Space, or an administrator of its organisation, is the
owner of the studio; users in the variable `ADAPTER_STUDIO_TRAINERS` (names with blanks between them) may
train; all others stay visitors. The secret `ADAPTER_STUDIO_AUTH` (`name:password`) adds an owner with a
password. With `ADAPTER_STUDIO_VISITORS` set to `none`, visitors have to sign in.

**Storage**: with a volume at `/data` (or where the variable `ADAPTER_STUDIO_VOLUME` says), everything is
kept there. Without one, a restart empties the Space, and the page says so; what `seed/` holds is copied
again.
{_describe_zero(spec)}"""


def _describe_zero(spec: SpaceSpec) -> str:
    """What a README says about ZeroGPU, as a paragraph; "" for other hardware."""
    if spec.hardware != ZERO:
        return ""
    return f"""
**ZeroGPU**: an answer is one call, and a training run is many: slices of 60 seconds (variable
`{SECONDS_VARIABLE}`), each of which continues from the last checkpoint. Calls use the GPU time
of the visitor who starts them. Evaluations, analyses and the APIs run on the CPU.
"""


def _escape(text: str) -> str:
    """A name as plain text in Markdown."""
    return "".join(f"\\{c}" if c in r"\`*_[]<>#|" else c for c in text)


def format_app(base: str, hardware: str) -> str:
    """The app.py of a Space."""
    zero = "import spaces  # noqa: F401  # before torch, which it patches\n\n" if hardware == ZERO else ""
    return f'''"""Starts Adapter Studio on a Hugging Face Space. Written by `python -m core space build`."""

import sys

{zero}import launch

if __name__ == "__main__":
    raise SystemExit(launch.serve(["--base", {base!r}, *sys.argv[1:]]))
'''


def format_requirements(pinned: str, hardware: str) -> str:
    """The requirements.txt of a Space: the studio's own, and what ZeroGPU needs."""
    return pinned + (f"{ZERO_PIN}\n" if hardware == ZERO else "")
