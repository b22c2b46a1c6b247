"""The role that each handler and server function of the page needs, in one table; `studio.events` checks it.

A handler that is missing here needs an owner. One that does several things, such as the handler of all
buttons of a list, needs a viewer here and asks for more by itself (`studio.events.require_role`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from core.spec.access import Role

# Module below `studio` -> its functions; a function inside `wire` is named by its own name.
VIEWER = {
    "actions": "run_action",  # asks for more
    "components.composer": "take_chip",
    "components.damaged": "refresh_damaged",
    "components.documents": "refresh",
    "components.exports": "poll_exports",
    "components.field_errors": "recheck",
    "components.guide": "ping poll",
    "components.imports": "poll_imports",
    "components.live": "metrics endings",
    "named_endpoints": "answer_prompt compare_models list_models",
    "events": "_run",  # of a group: each of its handlers is checked
    "tabs.analysis": "compare_adapters explain_answer show_method_help",
    "tabs.base": "cancel_change pick_base poll_download refresh",
    "tabs.calibration": "refresh",
    "tabs.compare": "cancel_delete_votes describe_columns export_markdown refresh show_switches show_tally "
    "answer_what_helps set_what_helps stop stream_answers stream_blind_test vote",
    "tabs.data": "refresh show_dataset",  # the second shows rows to trainers only
    "tabs.evaluate": "measure_mixes open_report refresh show_answers stop",
    "tabs.experiments": "act_on_experiment open_experiment refresh",  # the first asks for more
    "tabs.exports": "estimate open_for_adapter open_for_mix refresh refresh_also refresh_estimate "
    "show_settings",
    "tabs.grid": "act check fill_preset open_grid refresh",  # the first asks for more
    "tabs.keys": "refresh",
    "tabs.judges": "act_on_panel open_panel refresh",  # the first asks for more, the second shows less
    "tabs.library": "act_on_item cancel_delete follow_changes pick_item refresh",  # two ask for more
    "tabs.mix": "_answer_link ask clear describe_mix describe_next_mix follow_mixer load_mix open_link "
    "rate_answer refresh save_mix show_saved_mix stop",
    "tabs.runs": "change_queue compare_runs refresh show_queue",  # the first asks for more
    "tabs.train": "apply_advice change_dataset change_kind change_preset check refresh watch_run",
    "tabs.weight_map": "draw_map mark_mixer pick_mix refresh search_weights stop",
    "views.suite": "export_csv run_suite stop",
    "views.what_helps": "refresh",
}
TRAINER = {
    "components.drop": "discard_upload remove_upload store_upload",
    "components.imports": "cancel_import dismiss_import",
    "components.inspection": "poll_inspection",
    "tabs.analysis": "bake_mix",
    "tabs.calibration": "calibrate stop",
    "tabs.data": "show_example show_next_example show_pending_example show_rows",
    "tabs.data_derive": "derive merge save_note show_card",
    "tabs.data_hub": "change_preview look_up show_again start_hub_import",
    "tabs.data_import": "change_choices change_kind open_form pick_page read_files reopen "
    "show_new_dataset show_page start",
    "tabs.experiments": "start",
    "tabs.grid": "start",
    "tabs.train": "start",
}
# Handlers of all buttons of a list: what a button does -> the role that they ask for.
ACTS = {
    "tabs.runs.change_queue": dict.fromkeys(("move", "cancel", "requeue"), Role.TRAINER),
    "tabs.experiments.act_on_experiment": {
        "stop": Role.TRAINER,
        "resume": Role.TRAINER,
        "promote": Role.OWNER,
    },
    "tabs.judges.act_on_panel": {"stop": Role.TRAINER, "vote": Role.TRAINER},
    "tabs.library.pick_item": {"empty": Role.OWNER, "ask_empty": Role.OWNER},  # the second only asks
    "tabs.library.act_on_item": {"restore": Role.OWNER},
}
# These run by themselves when the page opens or a list changes: a refusal changes nothing, without a message.
AUTOMATIC = {
    "tabs.data": "show_example show_pending_example show_rows",
    "tabs.data_derive": "save_note",
    "tabs.data_import": "open_form read_files show_page",
}


def _list_names(table: dict[str, str]) -> frozenset[str]:
    return frozenset(f"studio.{module}.{name}" for module, names in table.items() for name in names.split())


ROLES = {
    **dict.fromkeys(_list_names(VIEWER), Role.VIEWER),
    **dict.fromkeys(_list_names(TRAINER), Role.TRAINER),
}
SILENT = _list_names(AUTOMATIC)


def name_of(fn: Callable[..., Any]) -> str:
    """The name of a handler as the tables have it: its module and its own name."""
    plain = inspect.unwrap(fn)
    return f"{plain.__module__}.{plain.__name__}"


def find_role(fn: Callable[..., Any]) -> Role:
    """The role that a handler needs; an owner's where the tables do not name it."""
    return ROLES.get(name_of(fn), Role.OWNER)


def is_silent(fn: Callable[..., Any]) -> bool:
    """Whether a refusal of a handler shows no message."""
    return name_of(fn) in SILENT
