"""The studio's look, light and dark: Gradio's theme and the style sheet.

The typeface is Inter, which lies in `assets/fonts` and is served by the studio; other scripts than Latin,
Cyrillic and Greek use the system's fonts. Sizes of text and the colours of base, domain, task and mix are CSS
variables in `assets/studio.css`; charts read them from there.
"""

from __future__ import annotations

import gradio as gr

from studio.assets import read_asset

SANS = (
    "Inter Variable",
    "ui-sans-serif",
    "-apple-system",
    "BlinkMacSystemFont",
    "Segoe UI",
    "Roboto",
    "Helvetica Neue",
    "Arial",
    "sans-serif",
)
# Subset in `assets/fonts` -> the characters that it holds.
FONT_RANGES = {
    "latin": "U+0000-00FF, U+0131, U+0152-0153, U+02BB-02BC, U+02C6, U+02DA, U+02DC, U+0304, U+0308, U+0329, "
    "U+2000-206F, U+20AC, U+2122, U+2191, U+2193, U+2212, U+2215, U+FEFF, U+FFFD",
    "latin-ext": "U+0100-02BA, U+02BD-02C5, U+02C7-02CC, U+02CE-02D7, U+02DD-02FF, U+1D00-1DBF, "
    "U+1E00-1E9F, U+1EF2-1EFF, U+2020, U+20A0-20AB, U+20AD-20C0, U+2113, U+2C60-2C7F, U+A720-A7FF",
    "cyrillic": "U+0301, U+0400-045F, U+0490-0491, U+04B0-04B1, U+2116",
    "greek": "U+0370-0377, U+037A-037F, U+0384-038A, U+038C, U+038E-03A1, U+03A3-03FF",
}
# The scale of `assets/studio.css`. Gradio declares CSS variables of the same names, for both colour schemes.
TEXT_SIZES = gr.themes.Size(
    name="studio", xxs="12px", xs="12px", sm="14px", md="16px", lg="20px", xl="28px", xxl="28px"
)
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Cascadia Mono", "DejaVu Sans Mono", "monospace")


def theme() -> gr.themes.Base:
    """Gradio's theme with the studio's colours, each taken from a CSS variable of `assets/studio.css`."""
    base = gr.themes.Base(
        primary_hue="blue", secondary_hue="blue", neutral_hue="slate",
        spacing_size="md", radius_size="md", text_size=TEXT_SIZES,
        font=SANS, font_mono=MONO,
    )  # fmt: skip
    line, card, ink, soft, quiet, accent = (
        f"var(--st-{n})" for n in ("line", "card", "ink", "soft", "quiet", "accent")
    )
    same = {
        "body_background_fill": "var(--st-paper)",
        "body_text_color": ink,
        "body_text_color_subdued": quiet,
        "background_fill_primary": card,
        "background_fill_secondary": "var(--st-paper)",
        "border_color_primary": line,
        "border_color_accent": accent,
        "color_accent_soft": "var(--st-accent-soft)",
        "block_background_fill": "transparent",
        "block_border_color": line,
        "block_label_background_fill": "transparent",
        "block_label_text_color": soft,
        "block_title_text_color": soft,
        "block_info_text_color": quiet,
        "panel_background_fill": card,
        "panel_border_color": line,
        "input_background_fill": "var(--st-field)",
        "input_background_fill_focus": "var(--st-field)",
        "input_border_color": line,
        "input_border_color_focus": accent,
        "input_placeholder_color": quiet,
        "input_shadow": "none",
        "input_shadow_focus": "0 0 0 3px var(--st-accent-soft)",
        "button_primary_background_fill": accent,
        "button_primary_background_fill_hover": "var(--st-accent-strong)",
        "button_primary_text_color": "var(--st-on-accent)",
        "button_primary_text_color_hover": "var(--st-on-accent)",
        "button_primary_border_color": accent,
        "button_secondary_background_fill": card,
        "button_secondary_background_fill_hover": "var(--st-hover)",
        "button_secondary_text_color": ink,
        "button_secondary_border_color": line,
        "button_cancel_background_fill": card,
        "button_cancel_background_fill_hover": "var(--st-bad-soft)",
        "button_cancel_text_color": "var(--st-bad)",
        "button_cancel_border_color": line,
        "checkbox_background_color": "var(--st-field)",
        "checkbox_background_color_selected": accent,
        "checkbox_border_color": line,
        "checkbox_border_color_selected": accent,
        "checkbox_label_background_fill": card,
        "checkbox_label_background_fill_hover": "var(--st-hover)",
        "checkbox_label_background_fill_selected": "var(--st-accent-soft)",
        "checkbox_label_text_color": ink,
        "checkbox_label_text_color_selected": ink,
        "checkbox_label_border_color": line,
        "slider_color": accent,
        "loader_color": accent,
        "link_text_color": accent,
        "link_text_color_hover": "var(--st-accent-strong)",
    }
    return base.set(
        **same,
        **{f"{k}_dark": v for k, v in same.items()},
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_text_weight="550",
        block_title_text_weight="550",
        block_title_text_size="14px",
        block_info_text_size="12px",
        button_primary_shadow="none",
        button_secondary_shadow="none",
        button_border_width="1px",
        button_large_text_weight="600",
        button_large_text_size="14px",
        button_large_padding="9px 16px",
        button_medium_text_size="14px",
        button_medium_padding="8.5px 14px",
        button_medium_text_weight="600",
        button_small_text_weight="550",
        body_text_size="14px",
        prose_text_size="14px",
        input_text_size="14px",
        block_label_text_size="14px",
        section_header_text_size="14px",
        checkbox_label_text_size="14px",
        input_border_width="1px",
        input_padding="9px 11px",
        layout_gap="14px",
        form_gap_width="0px",
    )


def fonts() -> str:
    """The declarations of the typeface, for the page's head."""
    faces = [
        "@font-face { font-family: 'Inter Variable'; font-style: normal; font-weight: 100 900; "
        f"font-display: swap; src: url('gradio_api/studio/fonts/inter-{subset}.woff2') format('woff2'); "
        f"unicode-range: {characters}; }}"
        for subset, characters in FONT_RANGES.items()
    ]
    return f"<style>{' '.join(faces)}</style>"


def css() -> str:
    """The studio's own style sheet."""
    return read_asset("assets/studio.css")
