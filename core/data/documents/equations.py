"""Equations of documents as one line of text: Office Math of .docx, MathML of .html and .epub.

a fraction (a + b)/c    a power x^2    an index x_i    a root sqrt(x)    a sum ∑_(i = 1)^n i
"""

from __future__ import annotations

from typing import Any

from core.data.documents.container_parts import find_local_name

M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"


def write_office_math(element: Any) -> str:
    """Writes the children of an Office Math element (m:oMath and what it holds)."""
    return "".join(_write_office_node(child) for child in element)


def _write_office_node(node: Any) -> str:
    name = find_local_name(node)
    if name == "t":
        return node.text or ""
    if name.endswith("Pr") or name in ("del", "moveFrom"):
        return ""

    def part(child: str) -> str:
        found = node.find(M + child)
        return "" if found is None else write_office_math(found)

    def setting(child: str, default: str) -> str:
        found = node.find(f"{M}{name}Pr/{M}{child}")
        return default if found is None else found.get(M + "val", "")

    if name == "f":
        return f"{_group(part('num'))}/{_group(part('den'))}"
    if name in ("sSup", "limUpp"):
        return f"{part('e')}^{_group(part('sup') or part('lim'))}"
    if name in ("sSub", "limLow"):
        return f"{part('e')}_{_group(part('sub') or part('lim'))}"
    if name in ("sSubSup", "sPre"):
        return f"{part('e')}_{_group(part('sub'))}^{_group(part('sup'))}"
    if name == "rad":
        degree = part("deg")
        return f"root({degree}, {part('e')})" if degree else f"sqrt({part('e')})"
    if name == "nary":
        low, high = part("sub"), part("sup")
        sign = setting("chr", "∫") + (f"_{_group(low)}" if low else "") + (f"^{_group(high)}" if high else "")
        return f"{sign} {part('e')}"
    if name == "d":
        inside = setting("sepChr", "|").join(write_office_math(e) for e in node.findall(M + "e"))
        return setting("begChr", "(") + inside + setting("endChr", ")")
    if name == "func":
        return f"{part('fName')} {part('e')}"
    if name in ("m", "eqArr"):
        rows = node.findall(M + "mr") if name == "m" else node.findall(M + "e")
        if name == "eqArr":
            return "; ".join(write_office_math(row) for row in rows)
        return "; ".join(", ".join(write_office_math(e) for e in row.findall(M + "e")) for row in rows)
    return write_office_math(node)


def _group(text: str) -> str:
    """Puts brackets around what is longer than one name or number."""
    text = text.strip()
    return text if text.isalnum() or len(text) == 1 else f"({text})"


def write_mathml(element: Any) -> str:
    """Writes a MathML element; TeX that it carries as an annotation wins."""
    for annotation in element.iter():
        if (
            find_local_name(annotation) == "annotation"
            and "tex" in (annotation.get("encoding") or "").lower()
        ):
            return (annotation.text or "").strip()
    return " ".join(_write_mathml_node(element).split())


def _write_mathml_node(node: Any) -> str:
    name = find_local_name(node)
    if not name or name.startswith("annotation"):
        return ""
    parts = [_write_mathml_node(child) for child in node if find_local_name(child)]
    if not parts:
        text = " ".join((node.text or "").split())
        return (
            f" {text} "
            if name == "mo" and text in ("=", "+", "-", "−", "<", ">", "≤", "≥", "≠", "→")
            else text
        )
    if name == "mfrac" and len(parts) == 2:
        return f"{_group(parts[0])}/{_group(parts[1])}"
    if name in ("msup", "mover") and len(parts) == 2:
        return f"{parts[0]}^{_group(parts[1])}"
    if name in ("msub", "munder") and len(parts) == 2:
        return f"{parts[0]}_{_group(parts[1])}"
    if name in ("msubsup", "munderover") and len(parts) == 3:
        return f"{parts[0]}_{_group(parts[1])}^{_group(parts[2])}"
    if name == "msqrt":
        return f"sqrt({''.join(parts)})"
    if name == "mroot" and len(parts) == 2:
        return f"root({parts[1]}, {parts[0]})"
    if name == "mtr":
        return ", ".join(parts) + "; "
    return "".join(parts)
