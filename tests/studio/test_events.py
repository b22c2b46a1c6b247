"""How the page's events are bound."""

from __future__ import annotations

from core.engine import Engine
from studio.app import build


def test_hidden_progress_of_all_events_is_borne_by_one_component(tmp_path) -> None:
    with Engine(tmp_path, base="embedded", quantization="none", load=False) as engine:
        config = build(engine).get_config_file()
    # The named endpoints are for programs: the page never fires them.
    bound = [d for d in config["dependencies"] if d["backend_fn"] and d["api_visibility"] == "private"]
    assert len(bound) > 100 and all(d["show_progress"] == "hidden" for d in bound)
    (bearers,) = {tuple(d["show_progress_on"]) for d in bound}
    assert len(bearers) == 1

    def list_ids(node: dict) -> list[int]:
        return [node["id"], *(i for child in node.get("children", []) for i in list_ids(child))]

    assert list_ids(config["layout"]).index(bearers[0]) < 5, "it is found from the root at once"
