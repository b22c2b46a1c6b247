"""The look: contrast of every pair of colours that the style sheet uses, sizes of text, the typeface."""

from __future__ import annotations

import re

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from studio import theme
from studio.assets import FOLDER, FONTS, read_asset
from studio.server.routes import routes

SCALE = {"--text-xs": 12, "--text-sm": 14, "--text-md": 16, "--text-lg": 20, "--text-xl": 28}
GROUNDS = ("paper", "card", "field", "hover")
HUES = ("base", "domain", "task", "mix", "good", "warn", "bad", "accent")


def colours(scheme: str) -> dict[str, str]:
    css = read_asset("assets/studio.css")
    light, dark = css.split("\n.dark {", 1)
    found = dict(re.findall(r"--st-([\w-]+): (#[0-9a-f]{6})", light))
    if scheme == "dark":
        found |= dict(re.findall(r"--st-([\w-]+): (#[0-9a-f]{6})", dark.split("\n}", 1)[0]))
    return found


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_colour_has_contrast_on_every_ground(scheme: str) -> None:
    known = colours(scheme)
    soft = [f"{hue}-soft" for hue in HUES]
    pairs = [(text, ground) for text in ("ink", "soft", "quiet") for ground in (*GROUNDS, *soft, "mark")]
    pairs += [(hue, ground) for hue in HUES for ground in (*GROUNDS, f"{hue}-soft", "accent-soft")]
    pairs += [("on-accent", "accent"), ("on-accent", "accent-strong")]
    weak = {(a, b): round(contrast(known[a], known[b]), 2) for a, b in pairs}
    assert {pair: c for pair, c in weak.items() if c < 4.5} == {}


def test_the_contrast_of_black_on_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


def test_every_size_of_text_comes_from_the_scale() -> None:
    css = read_asset("assets/studio.css")
    declared = {n: int(v) for n, v in re.findall(r"(--text-\w+): (\d+)px", css)}
    assert declared == SCALE
    sizes = set(re.findall(r"font-size: ([^;}]+)", css))
    allowed = {f"var({name})" for name in SCALE}
    others = {s for s in sizes if s.replace(" !important", "") not in allowed}
    # The presentation is for a projector, and what stands in it grows with the window.
    assert all(s.startswith(("clamp(", ".", "inherit", "1px")) for s in others), others


def test_the_theme_of_gradio_declares_the_same_sizes() -> None:
    made = theme.theme()
    assert {
        f"--text-{n}": int(getattr(made, f"text_{n}")[:-2]) for n in ("xs", "sm", "md", "lg", "xl")
    } == SCALE


def test_the_typeface_is_served_with_its_licence_and_declared() -> None:
    client = TestClient(Starlette(routes=routes(None)))  # type: ignore[arg-type]
    assert set(FONTS) == {f"inter-{subset}" for subset in theme.FONT_RANGES}
    for name in FONTS:
        answer = client.get(f"/gradio_api/studio/fonts/{name}.woff2")
        assert answer.status_code == 200 and answer.content[:4] == b"wOF2"
        assert f"gradio_api/studio/fonts/{name}.woff2" in theme.fonts()
    assert client.get("/gradio_api/studio/fonts/other.woff2").status_code == 404
    assert "SIL OPEN FONT LICENSE" in (FOLDER / "fonts" / "OFL.txt").read_text(encoding="utf-8").upper()
    assert "http" not in theme.fonts(), "no request goes to another host"


@pytest.mark.parametrize(
    ("number", "one", "many", "text"),
    [
        (1, "row", "", "1 row"),
        (0, "row", "", "0 rows"),
        (1240, "row", "", "1,240 rows"),
        (2, "entry", "", "2 entries"),
        (2, "day", "", "2 days"),
        (2, "mix", "", "2 mixes"),
        (2, "match", "", "2 matches"),
        (2, "person", "people", "2 people"),
    ],
)
def test_a_count_has_the_right_form_of_its_noun(number: int, one: str, many: str, text: str) -> None:
    from studio.formatting import count

    assert count(number, one, many) == text
