"""Thoughts are split from answers: complete, open at the end, opened by the prompt, or absent."""

from __future__ import annotations

import pytest

from core.data.tokens.thoughts import MARKERS, find_written_thoughts, split_thoughts


@pytest.mark.parametrize(("opening", "closing"), MARKERS)
def test_a_thought_is_split_from_its_answer(opening: str, closing: str) -> None:
    assert split_thoughts(f"{opening}\nNorth.\n{closing}\n\nIn the room.") == ("North.", "In the room.")
    assert split_thoughts(f" {opening}North.{closing} a {closing} b") == ("North.", f"a {closing} b")
    assert split_thoughts(f"{opening}\n\n{closing}\n\nyes") == ("", "yes"), "an empty thought"
    assert split_thoughts(f"{opening}North. And") == ("North. And", ""), "still open"
    assert split_thoughts(f"North.\n{closing}\nyes") == ("North.", "yes"), "the prompt has opened it"
    assert split_thoughts("North. And", is_open=True) == ("North. And", "")


def test_a_text_without_a_thought_stays_as_it_is() -> None:
    for text in ("", " yes\n", "use <think> and </think> here", "a < b", "<thin"):
        assert split_thoughts(text) == ("", text)


def test_a_written_thought_gives_back_the_content_in_four_parts() -> None:
    content = "<think>\nThe room.\n</think>\n\nyes <think>no</think>"
    parts = find_written_thoughts(content)
    assert parts == ("<think>\n", "The room.", "\n</think>\n\n", "yes <think>no</think>")
    assert "".join(parts) == content
    assert find_written_thoughts("<think></think>yes") == ("<think>", "", "</think>", "yes")
    assert (
        find_written_thoughts("<think>open") is None and find_written_thoughts("yes <think>a</think>") is None
    )
