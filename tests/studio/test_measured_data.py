"""The datasets that Evaluate and the weight map offer: data for evaluation only comes first."""

from __future__ import annotations

from pathlib import Path

from core.engine import Engine
from studio import measured_data
from studio.tabs import evaluate


def test_data_for_evaluation_is_offered_first_and_whole(tmp_path: Path) -> None:
    with Engine(tmp_path / "w", load=False) as engine:
        made = {}
        for name, purpose in (("Old", "training"), ("Exam", "evaluation"), ("New", "training")):
            file = tmp_path / f"{name}.txt"
            file.write_text("\n\n---\n\n".join(f"{name}: sentence number {i}." for i in range(12)))
            made[name] = engine.datasets.import_files([file], name, "domain", purpose=purpose).id
        assert measured_data.list_datasets(engine) == [
            ("Exam (for evaluation)", made["Exam"]),
            ("New", made["New"]),
            ("Old", made["Old"]),
        ]
        assert measured_data.list_whole_datasets(engine) == [made["Exam"]]
        fresh = evaluate.refresh(engine, None, [], None, None)
        assert fresh[0]["value"] == made["Exam"] and fresh[1] == made["Exam"]
