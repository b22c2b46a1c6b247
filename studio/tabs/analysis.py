"""Under the mixer: a map of two weights, learned weights, who did what, how adapters get on, and baking.

Knows what is asked about the mixer's present mix and how the answers are drawn. Knows nothing of how
they are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.engine.analysis import MAP_ROWS
from core.errors import SpecError
from core.merge.methods import METHODS, BakeSpec
from core.spec.mix import Mix
from studio import events, fields, samples
from studio.components import mixer, plot
from studio.session import read_sampling
from studio.tabs import mix as mixing
from studio.tree import Node, empty, title, view
from studio.views import analysis

METRICS = [("Perplexity", "perplexity"), ("Exact match", "exact_match")]
BAKED = ("name", "method", "rank", "density")
NO_MAP = empty(
    "No map yet",
    "Choose two adapters and held-out data. Every point of the map is a mix; a click takes it into the mixer.",
)
NO_WORDS = empty(
    "Nothing explained yet",
    "The mix answers the prompt above, and every word shows which adapter made it likelier.",
)
NO_MEETING = empty(
    "Nothing compared yet",
    "Switch two adapters on. Their updates are compared layer by layer, and on the prompt above.",
)
NOT_BAKED = empty(
    "Nothing baked yet",
    "The mixer's present mix becomes one ordinary adapter in the Library, checked against the live mix.",
)

NOT_EXPLAINED = empty("Stopped", "The answer was not explained.")
NOT_COMPARED = empty("Stopped", "The adapters were not compared.")
NO_LONGER_BAKED = empty("Stopped", "Nothing was baked, and nothing is left behind.")


class Study:
    """One visitor's questions: the stream under way, and the last map and comparison. Lives in `gr.State`."""

    def __init__(self) -> None:
        self.serial = 0
        self.latest: dict[
            str, int
        ] = {}  # place on the page -> serial of the last question whose answer goes there
        self.stream: Any = None
        self.map: Any = None
        self.learned: Any = None

    def __deepcopy__(self, memo: Any) -> Study:
        return Study()  # Gradio copies a state's first value for each session

    def stop(self) -> None:
        """Ends the work under way."""
        self.serial += 1
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def follow(self, place: str, stream: Any) -> Iterator[Any]:
        """What a stream says until it ends; None at last where it was stopped, unless a newer answer goes to the same place."""
        self.stop()
        serial, self.stream = self.serial, stream
        self.latest[place] = serial
        try:
            for part in stream:
                if self.serial != serial:
                    break
                yield part
        finally:
            stream.close()
        if self.serial != serial and self.latest[place] == serial:
            yield None


@dataclass(frozen=True)
class InsightTab:
    """The components."""

    x: gr.Dropdown
    y: gr.Dropdown
    dataset: gr.Dropdown
    metric: gr.Radio
    rows: gr.Number
    draw: gr.Button
    learn: gr.Button
    stop: gr.Button
    map: gr.HTML
    told: gr.HTML
    explain: gr.Button
    words: gr.HTML
    compare: gr.Button
    heat: gr.HTML
    meeting: gr.HTML
    spec: fields.Fields
    bake: gr.Button
    baked: gr.HTML
    study: gr.State


def build() -> InsightTab:
    """Makes the components."""
    with gr.Column(elem_classes="card", elem_id="insight"):
        view(
            title(
                "Understand this mix",
                "All four look at the mixer's present mix, on the model that is answering above.",
            )
        )
        with gr.Tabs():
            with gr.Tab("Weight map"), gr.Row(elem_classes="panes"):
                with gr.Column(scale=3, min_width=250):
                    with gr.Row():
                        x, y = fields.picker("Across", min_width=110), fields.picker("Up", min_width=110)
                    dataset = fields.picker(
                        "Data",
                        info="Mapped on rows that no adapter learned from; learned weights are judged on others of them.",
                    )
                    with gr.Row():
                        metric = gr.Radio(METRICS, value="perplexity", label="Measure", min_width=140)
                        rows = gr.Number(
                            MAP_ROWS,
                            label="Rows",
                            info="0 means all.",
                            minimum=0,
                            maximum=10_000,
                            precision=0,
                            min_width=90,
                        )
                    with gr.Row(elem_classes="actions"):
                        draw = gr.Button("Draw the map", variant="primary", min_width=120)
                        learn = gr.Button("Learn the weights", min_width=130)
                        stop = gr.Button("Stop", scale=0, min_width=70)
                with gr.Column(scale=6, min_width=320):
                    chart = plot.plot("map")
                    told = view(NO_MAP, elem_id="map-told")
            with gr.Tab("Contribution"):
                explain = gr.Button("Explain the answer", variant="primary", scale=0, min_width=170)
                words = view(NO_WORDS, elem_id="words")
            with gr.Tab("Interference"):
                compare = gr.Button("Compare the adapters", variant="primary", scale=0, min_width=170)
                meeting = view(NO_MEETING, elem_id="meeting")
                heat = plot.plot("heat")
            with gr.Tab("Bake"), gr.Row(elem_classes="panes"):
                with gr.Column(scale=3, min_width=250):
                    spec = fields.build(
                        BakeSpec, BAKED, choices={"method": [(m.label, m.name) for m in METHODS.values()]}
                    )
                    bake = gr.Button("Bake this mix", variant="primary")
                with gr.Column(scale=6, min_width=320):
                    baked = view(NOT_BAKED, elem_id="baked")
    study = gr.State(Study(), delete_callback=Study.stop)
    return InsightTab(
        x,
        y,
        dataset,
        metric,
        rows,
        draw,
        learn,
        stop,
        chart,
        told,
        explain,
        words,
        compare,
        heat,
        meeting,
        spec,
        bake,
        baked,
        study,
    )


def wire(
    tab: InsightTab, engine: Engine, library_changed: events.EventGroup, mix_changed: events.EventGroup, mix: mixing.MixTab
) -> None:
    """Connects the events."""
    asked = [tab.x, tab.y, tab.dataset, tab.rows, mix.mixer, tab.study]
    long: dict[str, Any] = {"concurrency_limit": 4, "trigger_mode": "multiple"}
    library_changed.add(refresh, [tab.x, tab.y, tab.dataset], [tab.x, tab.y, tab.dataset])
    events.bind(tab.draw.click, engine, mapped, [*asked, tab.metric], [tab.map, tab.told], **long)
    events.bind(tab.learn.click, engine, learned, asked, [tab.map, tab.told], **long)
    events.bind(tab.stop.click, engine, stopped, [tab.study], None)
    mix_changed.add(marked, [mix.mixer, tab.study], [tab.map])
    for taken in (events.bind(tab.map.point_click, engine, picked, [mix.mixer, tab.study], [mix.mixer, tab.map]),
                  events.bind(tab.told.act, engine, picked, [mix.mixer, tab.study], [mix.mixer, tab.map])):  # fmt: skip
        taken.success(
            events.handler(mixing.followed, engine),
            mix.asked(),
            [mix.answer],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=8,
        )
    spoken = [mix.prompt, mix.mixer, tab.study]
    events.bind(
        tab.explain.click,
        engine,
        explained,
        [*spoken, mix.plain, *mix.sampling.values()],
        [tab.words],
        **long,
    )
    events.bind(tab.compare.click, engine, compared, spoken, [tab.meeting, tab.heat], **long)
    events.bind(tab.spec["method"].change, engine, described, [tab.spec["method"]], [tab.spec["method"]])
    events.refresh_after(
        events.bind(
            tab.bake.click, engine, baked, [mix.mixer, tab.study, *tab.spec.values()], [tab.baked], **long
        )
    )


def refresh(engine: Engine, x: str | None, y: str | None, dataset: str | None) -> tuple[Any, ...]:
    """The adapters and datasets there are; at first the newest domain and task, and the held-out questions or what the task learned from."""
    here = [a for a in engine.library.mixable_adapters() if a.fits and not a.training]
    ids, choices = [a.id for a in here], [(a.name, a.id) for a in here]
    newest = {
        kind: next((a.id for a in reversed(here) if a.kind == kind), None)
        for kind in ("domain", "task")
    }
    across = x if x in ids else newest["domain"] or next(iter(ids), None)
    up = y if y in ids and y != across else newest["task"] if newest["task"] != across else None
    up = up or next((i for i in ids if i != across), None)
    sets = list(reversed(engine.datasets.list()))
    usual = samples.find_held_out(engine) or next((engine.library.adapter(i).dataset for i in (up, across) if i), "")
    data = (
        dataset
        if dataset in [d.id for d in sets]
        else next((d.id for d in sets if d.id == usual), next((d.id for d in sets), None))
    )
    return (
        fields.update_choices(choices, across, x),
        fields.update_choices(choices, up, y),
        fields.update_choices([(d.name, d.id) for d in sets], data, dataset),
    )


def _names(engine: Engine) -> dict[str, str]:
    return {a.id: a.name for a in engine.library.mixable_adapters()}


def _around(x: str | None, y: str | None, dataset: str | None, rows: Any) -> Mix:
    """The mix that the two adapters belong to.

    Raises:
        SpecError: something is not chosen.
    """
    if not x or not y:
        raise SpecError("A map needs two adapters.", "Train two, then choose one for each axis.")
    if not dataset:
        raise SpecError("No data is chosen.", "Import a dataset under Data, then choose it here.")
    return mixer.read_mix(rows)


def mapped(
    engine: Engine,
    x: str | None,
    y: str | None,
    dataset: str | None,
    limit: int,
    rows: Any,
    study: Study,
    metric: str,
) -> Iterator[tuple[Any, Any]]:
    """Draws the map; yields it as it grows."""
    around = _around(x, y, dataset, rows)
    names = _names(engine)
    study.learned = None
    for part in study.follow(
        "map", engine.analysis.weight_map(str(x), str(y), str(dataset), int(limit or 0), around, metric)
    ):
        study.map = part.map if part is not None else study.map
        under_way = part is not None and part.done < part.total
        yield _chart(engine, study, rows), analysis.working(part) if under_way else _map_told(study, names)


def learned(
    engine: Engine, x: str | None, y: str | None, dataset: str | None, limit: int, rows: Any, study: Study
) -> Iterator[tuple[Any, Any]]:
    """Learns the two weights and compares the ways of finding them."""
    around = _around(x, y, dataset, rows)
    fits = (
        study.map
        if study.map is not None and study.map.adapters == (x, y) and study.map.metric == "perplexity"
        else None
    )
    for part in study.follow(
        "map", engine.analysis.search_weights([str(x), str(y)], str(dataset), int(limit or 0), around, fits)
    ):
        if part is None:
            yield gr.skip(), empty("Stopped", "No weights were learned.")
        elif part.comparison is None:
            yield gr.skip(), analysis.working(part)
        else:
            study.learned = part.comparison
            yield _chart(engine, study, rows) if fits else gr.skip(), _map_told(study, _names(engine))


def _map_told(study: Study, names: dict[str, str]) -> Node:
    return (
        NO_MAP
        if study.map is None and study.learned is None
        else analysis.map_told(study.map, study.learned, names)
    )


def stopped(engine: Engine, study: Study) -> None:
    """Ends the work under way; what is drawn stays, and is kept."""
    study.stop()


def _chart(engine: Engine, study: Study, rows: Any) -> Any:
    if study.map is None:
        return None
    mix = mixer.read_mix(rows)
    same = all(mix.tilt.get(a, 0.0) == study.map.tilt.get(a, 0.0) for a in mix.weights)
    return analysis.chart(study.map, study.learned, _names(engine), mix.weights if same else None)


def marked(engine: Engine, rows: Any, study: Study) -> Any:
    """The mixer moved: so does its mark on the map."""
    return _chart(engine, study, rows) if study.map is not None else gr.skip()


def picked(engine: Engine, rows: Any, study: Study, event: gr.EventData) -> tuple[Any, Any]:
    """Takes a point of the map, or weights from the table below it, into the mixer."""
    said = event._data if isinstance(event._data, dict) else {}
    if "weights" in said:
        weights, tilt = said["weights"], said.get("tilt") or {}
    elif study.map is not None:
        weights, tilt = (
            {**study.map.fixed, study.map.adapters[0]: said.get("x"), study.map.adapters[1]: said.get("y")},
            study.map.tilt,
        )
    else:
        return gr.skip(), gr.skip()
    taken = mixer.apply_mix(rows, mixer.adapter_rows(engine), Mix(weights=weights, tilt=tilt))
    return taken, marked(engine, taken, study)


def explained(
    engine: Engine, prompt: str, rows: Any, study: Study, plain: bool, *sampling: Any
) -> Iterator[Node]:
    """Attributes the mix's answer, token by token."""
    if not prompt.strip():
        raise SpecError("There is no prompt.", "Write what to ask.")
    mix = mixer.read_mix(rows)
    for part in study.follow(
        "words", engine.analysis.attribution(prompt, mix, sampling=read_sampling(sampling), chat=not plain)
    ):
        if part is None or part.attribution is None:
            yield NOT_EXPLAINED if part is None else analysis.working(part)
        else:
            yield analysis.words(
                part.attribution, {a.id: (a.name, a.kind) for a in engine.library.mixable_adapters()}
            )


def compared(engine: Engine, prompt: str, rows: Any, study: Study) -> Iterator[tuple[Any, Any]]:
    """Compares the mix's adapters by their weights, and on the prompt."""
    mix = mixer.read_mix(rows)
    for part in study.follow("meeting", engine.analysis.interference(mix, [prompt or ""])):
        if part is None:
            yield NOT_COMPARED, gr.skip()
        elif part.done < part.total or not part.pairs:
            yield analysis.working(part), gr.skip()
        else:
            yield analysis.meeting(part), analysis.heat(part)


def described(engine: Engine, method: str) -> Any:
    """What the chosen way of baking does."""
    return gr.update(info=METHODS[method].help)


def baked(engine: Engine, rows: Any, study: Study, *values: Any) -> Iterator[Node]:
    """Bakes the mixer's present mix into an adapter of the library."""
    spec = BakeSpec(**fields.read(BakeSpec, dict(zip(BAKED, values, strict=True))))
    for part in study.follow("baked", engine.library.bake(mixer.read_mix(rows), spec)):
        if part is None:
            yield NO_LONGER_BAKED
        else:
            yield analysis.baked(part) if hasattr(part, "adapter") else analysis.working(part)
