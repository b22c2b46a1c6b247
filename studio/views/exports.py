"""Views of what leaves the studio: one export with its progress, files and certificate, and the estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from core.export.card import list_figures
from core.spec.export import FORM_LABELS
from studio import formatting
from studio.tree import Node, button, chip, details, download, facts, node, progress_bar, table
from studio.views.export_uploads import make_act, render_upload, render_upload_form, render_upload_question

ZIP_BYTES = 256_000_000  # an export up to this size can also be downloaded as one zip file
BADGES = {"passed": ("passed", "good"), "failed": ("FAILED", "bad"), "not checked": ("not checked", "")}
EXACT = ("f32", "f16", "bf16")  # quantizations that lose next to nothing
# What the figures of a certificate mean, by their names.
MEANINGS = {
    "Runtime": "The program that opened the files and answered with them.",
    "Studio": "The precision in which the studio answered.",
    "Compared": "Both read the same held-out prompts; a token is a word or a part of one.",
    "Same most likely token": "How often both expect the same next token after the same text.",
    "Greedy answers, equal from the start": "Whole answers, each token the most likely one. One different "
    "token changes all that follow, so this may be lower.",
    "KL divergence": "How far the two sets of probabilities are apart; 0 is none.",
    "Perplexity, studio and file": "How much the text surprises each side; equal numbers mean the same.",
    "Largest difference of logits": "Logits are the numbers that the probabilities are computed from.",
    "Stop tokens": "Where an answer ends.",
    "Chat template": "How questions and answers are put together for the model.",
}


def render_estimate(estimate: Any, free_bytes: int, is_checked: bool) -> Node:
    """What an export will take, in one line; whether the disk has too little space for it.

    Args:
        estimate: a `core.export.estimate.Estimate`.
        free_bytes: on the disk of the workspace.
        is_checked: whether a check follows.
    """
    need, free = formatting.format_bytes(estimate.free_bytes), formatting.format_bytes(free_bytes)
    if estimate.free_bytes > free_bytes:
        text = f"The disk has too little space: {need} are needed and {free} are free. Free some first."
        return render_problem(text)
    size, time = formatting.format_bytes(estimate.bytes), formatting.format_duration(estimate.seconds)
    after = ", and the check after that" if is_checked else ""
    text = f"About {size} on the disk; {need} must be free, {free} are. About {time} to write{after}."
    return node("p", text, cls="quiet", role="status")


def render_hint(text: str) -> Node:
    """What is said in the place of the estimate."""
    return node("p", text, cls="quiet")


def render_problem(problem: str) -> Node:
    """Why it cannot be exported, in the place of the estimate."""
    return node("p", problem, cls="problem", role="alert")


def render_export(
    export: Any, status: Any = None, asks: bool = False, upload: Any = None, asks_upload: bool = False
) -> Node:
    """One export of the list.

    Args:
        export: a `core.store.exports.Export`.
        status: the work on it since the studio was opened, or None.
        asks: whether the question about its deletion is shown.
        upload: its upload since then, or None.
        asks_upload: whether the question about its upload is shown.
    """
    is_running = status is not None and not status.has_ended
    about = " · ".join(
        text
        for text in (
            describe_form(export),
            formatting.format_bytes(export.bytes) if export.is_complete else "",
            formatting.format_base(export.base),
            formatting.format_time(export.created),
        )
        if text
    )
    return node(
        "div",
        node("div", node("strong", export.name), _render_state(export, status), cls="row spread-row"),
        node("p", about, cls="quiet"),
        *(
            _render_work(export, status)
            if is_running
            else _render_result(export, status, asks, upload, asks_upload)
        ),
        cls="import-job",
    )


def describe_form(export: Any) -> str:
    """The form of an export, with its precision or quantization where it has one."""
    label = FORM_LABELS.get(export.form, export.form)
    if export.form in ("gguf", "bundle"):
        return f"{label}, {str(export.spec.get('quantization', '')).upper()}"
    precision = str(export.spec.get("precision", "base"))
    return f"{label}, {precision.upper()}" if export.form == "merged" and precision != "base" else label


def _render_state(export: Any, status: Any) -> Node:
    if status is not None and not status.has_ended:
        return chip(status.state, "live" if status.state == "running" else "")
    if not export.is_complete:
        return chip("failed", "bad") if status and status.state == "failed" else chip("interrupted", "warn")
    return chip(*BADGES.get(export.certificate.get("status", ""), BADGES["not checked"]))


def _render_work(export: Any, status: Any) -> Sequence[Node]:
    stop = button("Stop", make_act("stop", export), aria_label=f"Stop the export {export.name}")
    share = f"{100 * status.share:.0f} % · " if status.share else ""
    return (
        progress_bar(status.share, f"Export of {export.name}"),
        node("div", node("p", f"{share}{status.text}", cls="quiet"), stop, cls="row spread-row"),
    )


def _render_result(
    export: Any, status: Any, asks: bool, upload: Any, asks_upload: bool
) -> Sequence[Node | None]:
    is_uploading = upload is not None and not upload.has_ended
    problem = str(status.problem) if status is not None and status.state == "failed" else ""
    return (
        node("p", problem, cls="problem", role="alert") if problem else None,
        _render_verdict(export) if export.is_complete else _explain_interruption(),
        node("ul", *[node("li", note) for note in export.notes], cls="export-notes")
        if export.notes
        else None,
        node(
            "div",
            _render_files(export) if export.files else None,
            _render_certificate(export, export.certificate) if export.certificate.get("positions") else None,
            render_upload_form(export, upload, is_uploading, asks or asks_upload)
            if export.is_complete
            else None,
            None if asks or asks_upload or is_uploading else _render_buttons(export),
            cls="row",
        ),
        render_upload(export, upload) if export.is_complete else None,
        _render_question(export) if asks else None,
        render_upload_question(export) if asks_upload else None,
    )


def _explain_interruption() -> Node:
    text = "Its files are not complete. Continue writes the rest; what is written already stays."
    return node("p", text, cls="quiet")


def _render_buttons(export: Any) -> Node:
    label, verb = "Continue", f"Continue the export {export.name}"
    if export.is_complete:
        label = "Check again" if export.certificate else "Check"
        verb = f"{label}: {export.name}"
    return node(
        "div",
        button(label, make_act("resume", export), aria_label=verb),
        button(
            "Delete", make_act("ask", export), "quiet danger", aria_label=f"Delete the export {export.name}"
        ),
        cls="row push",
    )


def _render_question(export: Any) -> Node:
    size = f" ({formatting.format_bytes(export.bytes)})" if export.files else ""
    text = (
        f"Delete the export {export.name} with its files{size}? They do not go to the trash. "
        "The adapters stay, so they can be exported again."
    )
    return node(
        "div",
        node("p", text, cls="problem"),
        node(
            "div",
            button("Yes, delete it", make_act("delete", export), "quiet danger"),
            button("Keep it", make_act("keep", export)),
            cls="row",
        ),
    )


def _render_verdict(export: Any) -> Node | None:
    """What the certificate says, as a sentence; of a failed one, what to do."""
    certificate = export.certificate
    status, reason = certificate.get("status", ""), certificate.get("reason", "")
    if status == "passed":
        agreement = formatting.format_percent(certificate.get("agreement"))
        text = (
            f"{certificate.get('runtime')} opened the files and says the same as the studio: "
            f"{agreement} of {certificate.get('positions', 0):,} predicted tokens are equal."
        )
        return node("p", text, cls="quiet")
    if status == "failed":
        return node(
            "div",
            node("p", f"These files do not say what the studio says. {reason}"),
            node("p", _advise(export)),
            cls="problem",
            role="alert",
        )
    text = reason or "Nothing has compared these files with the studio yet."
    return node("p", f"Not checked. {text}" if reason else text, cls="quiet")


def _advise(export: Any) -> str:
    """What to do about a certificate that failed."""
    certificate = export.certificate
    limit = (certificate.get("limits") or {}).get("agreement", 0.0)
    is_other = bool(certificate.get("positions")) and certificate.get("agreement", 0.0) < limit
    quantization, precision = export.spec.get("quantization"), export.spec.get("precision", "base")
    if is_other and export.form in ("gguf", "bundle") and quantization not in EXACT:
        return (
            f"{str(quantization).upper()} rounds the weights. Export it again as Q8_0 or F16: the file is "
            "larger and closer to the studio."
        )
    if is_other and export.form == "merged" and precision in ("f16", "bf16"):
        return (
            f"{precision.upper()} rounds the weights. Export it again in the precision of the base, or F32."
        )
    return (
        "Check it again. If it fails again, do not use these files, and report it to the makers of the "
        "studio with certificate.json, which is under Files."
    )


def _render_files(export: Any) -> Node:
    size = formatting.format_bytes(export.bytes)
    rows = [[_render_link(export, file.name), formatting.format_bytes(file.bytes)] for file in export.files]
    sums = node("pre", "\n".join(f"{file.sha256}  {file.name}" for file in export.files))
    whole = None
    if export.bytes <= ZIP_BYTES:
        whole = download("Download all as one zip", f"export/{export.id}.zip", f"{export.id}.zip")
    return details(
        f"Files ({len(export.files)}, {size})",
        table(["Name", "Size"], rows, f"Files of {export.name} ({export.id})", frozenset({1})),
        node("div", whole, cls="row export-zip") if whole else None,
        details("Checksums (sha256)", sums),
    )


def _render_link(export: Any, name: str) -> Node:
    link = download(name, f"export/{export.id}/{quote(name)}", name.rpartition("/")[2])
    return {**link, "cls": "btn link"}


def _render_certificate(export: Any, certificate: Mapping[str, Any]) -> Node:
    rows = []
    for name, value in list_figures(certificate):
        meaning = node("small", MEANINGS[name], cls="export-meaning") if name in MEANINGS else None
        rows.append([node("div", name, meaning), value])
    made = formatting.format_time(certificate.get("created", 0.0))
    examples = certificate.get("examples") or ()
    return details(
        "Certificate",
        table(["What was compared", "Result"], rows, f"{export.name} ({export.id}), compared {made}"),
        node("h3", "Examples") if examples else None,
        *[_render_example(example) for example in examples],
    )


def _render_example(example: Mapping[str, Any]) -> Node:
    equal = f"{example.get('equal_tokens', 0)} of {example.get('tokens', 0)}"
    return facts(
        [
            ("Prompt", example.get("prompt")),
            ("Studio", example.get("studio") or "(ends at once)"),
            ("File", example.get("file") or "(ends at once)"),
            ("Equal tokens from the start", equal),
        ]
    )
