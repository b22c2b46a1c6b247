"""How findings about a mix are drawn: maps, learned weights, words, meetings, baked adapters.

Knows the fields of what the composer finds. Knows nothing of how it is found, or who asked.
"""

from __future__ import annotations

import math
from typing import Any

from core.merge.methods import METHODS
from studio import formatting
from studio.components import plot
from studio.tree import Node, button, facts, node, table, title

WAYS = {
    "gradient": "Gradient descent",
    "grid": "Grid search",
    "gradient-free": "Gradient-free (LoRAHub)",
    "sum": "Plain sum",
    "single": "Best single",
    "base": "Base",
}
MARKS = {
    "best": ("star", "--st-task"),
    "learned": ("diamond", "--st-mix"),
    "mixer": ("circle-open", "--st-ink"),
}


def working(part: Any) -> Node:
    share = f"{100 * part.done / part.total:.1f}%" if part.total else "0%"
    bar = node(
        "div",
        node("div", cls="bar-fill"),
        cls="bar busy",
        vars={"share": share},
        role="progressbar",
        aria_label="Progress",
    )
    return node("div", node("p", f"{part.text}: {part.done} of {part.total}", cls="quiet"), bar)


def chart(
    found: Any, learned: Any, names: dict[str, str], present: dict[str, float] | None
) -> dict[str, Any] | None:
    """The map as a chart: darker is better, with the best cell, the learned weights and the mixer marked."""
    exact = found.metric == "exact_match"
    rows = [[v if v is not None and math.isfinite(v) else None for v in row] for row in found.values]
    values = [v for row in rows for v in row if v is not None]
    z = [[None if v is None else v if exact else math.log10(v) for v in row] for row in rows]
    if not values:
        return None
    low, high = min(values), max(values)
    clipped = not exact and len(values) > 8
    if clipped:  # a few hopeless corners would take all the colours
        high = max(sorted(values)[int(0.85 * (len(values) - 1))], low * 1.01)
    ticks = [
        low + (high - low) * i / 4
        if exact
        else math.log10(low) + (math.log10(high) - math.log10(low)) * i / 4
        for i in range(5)
    ]
    ramp = [[0, "--st-card"], [1, "--st-accent"]] if exact else [[0, "--st-accent"], [1, "--st-card"]]

    def label(value: float) -> str:
        return formatting.format_percent(value) if exact else f"{value:.3g}"

    scale = [label(t if exact else 10**t) for t in ticks]
    scale[-1] = f"≥ {scale[-1]}" if clipped else scale[-1]
    x_name, y_name = (plot.literal(names.get(a, a)) for a in found.adapters)
    field = {
        "type": "contour" if found.complete else "heatmap", "x": list(found.xs), "y": list(found.ys), "z": z, "colorscale": ramp, "line": {"color": "--st-line"},
        "text": [["" if v is None else label(v) for v in row] for row in rows], "contours": {"coloring": "heatmap"}, "ncontours": 14,
        "zmin": low if exact else math.log10(low), "zmax": high if exact else math.log10(high),
        "hovertemplate": f"{x_name} %{{x:.2f}}<br>{y_name} %{{y:.2f}}<br><b>%{{text}}</b><extra></extra>",
        "colorbar": {"thickness": 12, "outlinewidth": 0, "tickvals": ticks, "ticktext": scale, "title": {"text": found.metric_label, "side": "right"}},
    }  # fmt: skip
    spots = {"best": found.best and (found.best.x, found.best.y)}
    if (
        present is not None and {a: w for a, w in present.items() if a not in found.adapters} == found.fixed
    ):  # else the mixer is somewhere else than on this map
        spots["mixer"] = tuple(present.get(a, 0.0) for a in found.adapters)
    if learned is not None and set(learned.adapters) == set(found.adapters):
        spots["learned"] = tuple(learned.result("gradient").weights[a] for a in found.adapters)
    marks = [
        {"type": "scatter", "mode": "markers", "x": [at[0]], "y": [at[1]], "name": name.capitalize(), "hoverinfo": "name",
         "marker": {"symbol": MARKS[name][0], "size": 15, "color": MARKS[name][1], "line": {"width": 2, "color": "--st-card" if name != "mixer" else "--st-ink"}}}
        for name, at in spots.items() if at
    ]  # fmt: skip
    zero = [{"type": "line", "line": {"color": "--st-quiet", "width": 1, "dash": "dot"}, "layer": "above", **at}
            for at in ({"x0": 0, "x1": 0, "y0": found.ys[0], "y1": found.ys[-1]}, {"y0": 0, "y1": 0, "x0": found.xs[0], "x1": found.xs[-1]})]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": f"Weight of {x_name}"}, "range": [found.xs[0], found.xs[-1]]},
        "yaxis": {"title": {"text": f"Weight of {y_name}"}, "range": [found.ys[0], found.ys[-1]]},
        "shapes": zero, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, "margin": {"l": 8, "r": 8, "t": 36, "b": 8},
    }  # fmt: skip
    return plot.figure([field, *marks], layout, pick=True)


def map_told(found: Any, learned: Any, names: dict[str, str]) -> Node:
    best = found.best if found is not None else None
    kids: list[Node | None] = []
    if found is not None:
        take = (
            button(
                "Take the best",
                {
                    "weights": {**found.fixed, found.adapters[0]: best.x, found.adapters[1]: best.y},
                    "tilt": found.tilt,
                },
            )
            if best
            else None
        )
        kids += [
            node("p", found.summary(names), cls="reading"),
            node("div", *([take] if take else []), cls="row"),
        ]
    if learned is not None:
        kids += _ways(learned, names)
    if found is not None:
        x_name, y_name = (names.get(a, a) for a in found.adapters)
        heads = [f"{y_name} \\ {x_name}", *[f"{x:g}" for x in found.xs]]
        exact = found.metric == "exact_match"
        upwards = reversed(list(zip(found.ys, found.values, strict=True)))
        lines = [
            [
                f"{y:g}",
                *[
                    formatting.NONE if v is None else formatting.format_percent(v) if exact else f"{v:.3g}"
                    for v in row
                ],
            ]
            for y, row in upwards
        ]
        inner = table(heads, lines, found.metric_label.capitalize(), frozenset(range(1, len(heads))))
        kids.append(node("details", node("summary", "The numbers of the map"), inner))
    return node("div", *kids)


def _ways(comparison: Any, names: dict[str, str]) -> list[Node | None]:
    """How the weights were found, and whether finding them helped."""
    heads = [
        "Way",
        *[names.get(a, a) for a in comparison.adapters],
        "Validation",
        "Test",
        "Exact match",
        "Gain over the sum",
    ]
    lines = []
    for way in comparison.results:
        gain = way.gains.get("sum")
        told = f"{gain.nats:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})" if gain else formatting.NONE
        weights = [f"{way.weights.get(a, 0.0):.2f}" for a in comparison.adapters]
        losses = [
            formatting.format_number(math.exp(min(loss, 50.0)), 3) for loss in (way.validation_loss, way.test_loss)
        ]
        name = WAYS.get(way.name, way.name) + (f", {way.seconds:.0f} s" if way.gains else "")
        lines.append([name, *weights, *losses, formatting.format_percent(way.exact_match), told])
    best = comparison.result("gradient")
    take = button(
        "Take the learned mix", {"weights": {**comparison.fixed, **best.weights}, "tilt": comparison.tilt}
    )
    caption = "Perplexities on the rows to choose on and the rows to judge on; the gain is in nats per token, with its 95 % interval"
    about = table(heads, lines, caption, frozenset(range(1, len(heads))))
    return [
        node("h3", "Learned weights"),
        node("p", comparison.summary(names, ("gradient",)), cls="reading"),
        node("div", take, cls="row"),
        about,
    ]


def words(found: Any, adapters: dict[str, tuple[str, str]]) -> Node:
    lines = [
        ("All together", "mix", found.joint),
        *((*adapters.get(a, (a, "mix")), nats) for a, nats in found.by_adapter.items()),
    ]
    most = max((abs(n) for _, _, nats in lines for n in nats), default=1.0) or 1.0
    body = [
        node(
            "div",
            node("strong", name),
            node("p", *[_token(t, n, most) for t, n in zip(found.tokens, nats, strict=True)], cls="tinted"),
            cls=f"word-row {kind}",
        )
        for name, kind, nats in lines
    ]
    numbers = [
        [t.strip() or "␣", *[f"{nats[i]:+.2f}" for _, _, nats in lines], f"{found.full[i]:.2f}"]
        for i, t in enumerate(found.tokens)
    ]
    heads = ["Token", *[name for name, _, _ in lines], "Log-probability"]
    inner = table(
        heads,
        numbers,
        "Nats that each adapter adds to a token; the last column is the token's own log-probability",
        frozenset(range(1, len(heads))),
    )
    legend = node(
        "p", "A filled word became likelier through this adapter, an underlined one less likely.", cls="quiet"
    )
    said = node("p", found.summary({a: n for a, (n, _) in adapters.items()}), cls="reading")
    return node("div", said, *body, legend, node("details", node("summary", "The numbers"), inner))


def _token(text: str, nats: float, most: float) -> Node:
    strength = f"{100 * min(1.0, math.sqrt(abs(nats) / most)):.0f}%"
    return node(
        "span",
        text,
        cls="word more" if nats >= 0 else "word less",
        vars={"strength": strength},
        title=f"{nats:+.2f} nats",
    )


def meeting(found: Any) -> Node:
    kids: list[Node] = []
    for pair in found.pairs:
        a, b = pair.names
        heads = [
            "Layer",
            "Cosine",
            "Outputs shared",
            "by chance",
            "Inputs shared",
            "by chance",
            f"Size of {a}",
            f"Size of {b}",
        ]
        lines = [["All" if m.layer < 0 else str(m.layer), f"{m.cosine:+.3f}", f"{m.output_overlap:.2f}", f"{m.chance_output_overlap:.2f}", f"{m.input_overlap:.2f}", f"{m.chance_input_overlap:.2f}",
                  f"{m.norms[0]:.3g}", f"{m.norms[1]:.3g}"] for m in (pair.overall, *pair.layers)]  # fmt: skip
        inner = table(heads, lines, f"{a} and {b}, by their weights", frozenset(range(1, len(heads))))
        kids += [
            node("p", pair.summary(), cls="reading"),
            node("details", node("summary", f"The numbers of {a} and {b}"), inner),
        ]
    if found.outputs is not None:
        said = found.outputs
        rows = [("The mix from the base", f"{said.divergence_from_base:.3g} nats per token")]
        rows += [
            (f"The mix from {n} alone", f"{d:.3g} nats per token")
            for n, d in zip(said.names, said.divergence_from_parts, strict=True)
        ]
        kids += [node("h3", "On the prompt"), node("p", said.summary(), cls="reading"), facts([*rows])]
    return node("div", *kids)


def heat(found: Any) -> dict[str, Any] | None:
    """Cosines layer by layer and module by module, of the first pair."""
    pair = found.pairs[0]
    if not pair.modules:
        return None
    modules = list(dict.fromkeys(m.module for m in pair.modules))
    layers = sorted({m.layer for m in pair.modules})
    at = {(m.layer, m.module): m for m in pair.modules}
    z = [[at[n, m].cosine if (n, m) in at else None for m in modules] for n in layers]
    most = max(0.1, *(abs(v) for row in z for v in row if v is not None))
    text = [["" if v is None else f"{v:+.2f}" if abs(v) >= 0.005 else "0" for v in row] for row in z]
    field = {"type": "heatmap", "x": modules, "y": [f"Layer {n}" for n in layers], "z": z, "text": text, "texttemplate": "%{text}", "zmin": -most, "zmax": most,
             "colorscale": [[0, "--st-task"], [0.5, "--st-card"], [1, "--st-domain"]], "xgap": 2, "ygap": 2, "hovertemplate": "%{y}, %{x}: cosine %{text}<extra></extra>",
             "colorbar": {"thickness": 12, "outlinewidth": 0, "title": {"text": "cosine"}}}  # fmt: skip
    return plot.figure([field], {"yaxis": {"autorange": "reversed"}}, height=120 + 34 * len(layers))


def baked(found: Any) -> Node:
    rows = [
        ("Adapter", found.adapter.name),
        ("Method", METHODS[found.method].label),
        ("Rank", found.rank),
        ("Differs by", f"{found.changed:.3%} of the energy"),
    ]
    rows += (
        [("Largest difference of a logit", f"{found.logit_difference:.2g}")]
        if found.logit_difference is not None
        else []
    )
    rows += (
        [("Divergence from the live mix", f"{found.divergence:.2g} nats per token")]
        if found.divergence is not None
        else []
    )
    open_library = node(
        "p",
        "It is in the Library, where it can be verified and downloaded, and in the mixer, where it can be mixed again.",
        cls="quiet",
    )
    return node(
        "div",
        title(f"{found.adapter.name} is baked"),
        node("p", found.summary(), cls="reading"),
        facts(rows),
        open_library,
    )
