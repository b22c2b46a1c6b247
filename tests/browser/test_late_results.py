"""What the browser does with results that come late, over random orders of edits and results."""

from __future__ import annotations

import random

import pytest

from studio.late_results import FILLS_KEPT, SHOW

pytestmark = [pytest.mark.slow, pytest.mark.browser]
FIELDS = ("1", "2", "3")
KEY = "9"
# Takes the steps of `tell_story` on values of fields, and returns the values after each step.
PLAY = """(story) => {
  window.studio = {};
  let stale = 0;
  const show = SHOW, ids = ["1", "2", "3", "9"], asked = {}, after = [];
  const listener = () => { stale += 1; };
  window.addEventListener("studio:stale", listener);
  let now = ["a", "b", "c", "k"];
  story.forEach(([kind, name, what], i) => {
    if (kind === "ask") asked[name] = Object.fromEntries(ids.map((id, at) => [id, now[at]]));
    if (kind === "edit") now[ids.indexOf(name)] = what;
    if (kind === "arrive") {
      const parts = [{ fill: what, made_from: asked[name], keys: ["9"] }];
      const shown = show({ result: `${i}`, parts }, ...now);
      now = now.map((value, at) => {
        const next = shown[at];
        if (next === undefined) return value;
        return next?.__type__ === "update" ? ("value" in next ? next.value : value) : next;
      });
    }
    after.push([...now, stale]);
  });
  window.removeEventListener("studio:stale", listener);
  return after;
}"""


def tell_story(draw: random.Random) -> list[list[object]]:
    """Steps of a visitor and of results: asked for, edited and arrived, in any order."""
    story: list[list[object]] = []
    asked: list[str] = []
    for step in range(draw.randrange(4, 24)):
        kind = draw.choice(("ask", "edit", "arrive"))
        if kind == "ask" and len(asked) < FILLS_KEPT:
            asked.append(f"r{step}")
            story.append(["ask", asked[-1], None])
        elif kind == "edit":
            field = draw.choice((*FIELDS, *FIELDS, KEY))
            story.append(["edit", field, f"typed {step}"])
        elif kind == "arrive" and asked:
            fields = draw.sample(FIELDS, draw.randrange(1, 4))
            fill: dict[str, object] = {f: f"filled {f} {step}" for f in fields}
            if draw.random() < 0.5:
                fill = {f: {"__type__": "update", "value": v, "info": "help"} for f, v in fill.items()}
            story.append(["arrive", asked.pop(draw.randrange(len(asked))), fill])
    return story


def test_results_leave_edits_and_show_the_rest_in_any_order(browser) -> None:
    page = browser.new_page()
    stories = [tell_story(random.Random(seed)) for seed in range(600)]
    play = PLAY.replace("SHOW", SHOW.replace("IDS", '["1", "2", "3", "9"]').replace("CARRIER", "5")).replace(
        "FILLS_KEPT", str(FILLS_KEPT)
    )
    shown, dropped, kept = 0, 0, 0
    for story, states in zip(
        stories, page.evaluate(f"(stories) => stories.map({play})", stories), strict=True
    ):
        asked_at: dict[object, int] = {}
        edited_at = dict.fromkeys((*FIELDS, KEY), -1)
        before = ["a", "b", "c", "k", 0]
        for step, ((kind, name, what), state) in enumerate(zip(story, states, strict=True)):
            if kind == "ask":
                asked_at[name] = step
            elif kind == "edit":
                edited_at[str(name)] = step
            else:
                asked = asked_at[name]
                if edited_at[KEY] > asked:
                    assert state == [*before[:4], before[4] + 1], "dropped, and the lists are asked for again"
                    dropped += 1
                else:
                    for at, field in enumerate(FIELDS):
                        filled = what.get(field) if edited_at[field] < asked else None
                        value = filled["value"] if isinstance(filled, dict) else filled
                        assert state[at] == (value or before[at]), (story, step, field)
                        kept += field in what and value is None
                        shown += value is not None
            before = state
    page.close()
    assert min(shown, dropped, kept) > 100
