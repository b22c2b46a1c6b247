"""Plain text and Markdown to blocks: paragraphs, headings, lists, code. The text stays as it was typed.

Plain text is cut at its blank lines. Headings are chapters ("CHAPTER IV.", "Kapitel 3"), single lines in
capitals, underlined lines, and lines that begin with "#". Markdown is read by `document_markdown`.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from core.data.documents.document import Block

MARKDOWN_SUFFIXES = (".md", ".markdown")
MARKDOWN_LIMIT = 4_000_000  # characters; longer texts are read as plain text, which is ten times as fast

_PARTS = (
    r"part|book|volume|teil|buch|band|partie|livre|tome|parte|libro|livro|deel|del|bok|część|księga|"
    r"часть|книга|том"
)
_CHAPTERS = (
    r"chapter|section|act|scene|letter|canto|stave|lesson|appendix|kapitel|abschnitt|akt|szene|brief|anhang|"
    r"chapitre|acte|"
    r"scène|annexe|cap[ií]tulo|secci[oó]n|acto|escena|capitolo|sezione|atto|scena|hoofdstuk|rozdział|kapitola|luku|глава|раздел"
)
_WORDS = (
    r"one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    r"nineteen|twenty(?:[- ]\w{3,5})?|thirty(?:[- ]\w{3,5})?|forty(?:[- ]\w{3,5})?|fifty(?:[- ]\w{3,5})?|"
    r"the (?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last)|"
    r"first|second|third|fourth|fifth|last|eins|zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|premier|première|deux|trois|"
    r"primer[oa]?|segund[oa]|tercer[oa]?|un[oa]?|dos|tres"
)
_NUMBER = rf"(?:\d{{1,4}}(?:\.\d{{1,3}})*|(?-i:[IVXLCDM]{{1,8}}|[ivxl]{{1,6}}(?=\W|$)|[A-Z])|{_WORDS})"
_CHAPTER = re.compile(
    rf"(?:(?P<part>{_PARTS})|(?:{_CHAPTERS}))\s+{_NUMBER}\s*(?P<rest>[.:)—–-]+(?:\s.{{1,90}})?|\s(?-i:(?=[^a-z]))[^.!?,;]{{1,70}})?",
    re.IGNORECASE,
)
_ASIAN_CHAPTER = re.compile(
    r"(?:第\s*[\d〇零一二三四五六七八九十百千]{1,6}\s*[章回节節卷話话部編编]|"
    r"제\s*\d{1,4}\s*[장부편절])(?:\s.{1,60}|[:：、].{1,60})?"
)
_NAMED = re.compile(
    r"(?:prologue|epilogue|preface|foreword|introduction|conclusion|afterword|acknowledge?ments|prolog|epilog|vorwort|"
    r"einleitung|nachwort|préface|avant-propos|épilogue|prólogo|epílogo|prefacio|prefazione|introduzione)[.:]?",
    re.IGNORECASE,
)
_ROMAN = re.compile(r"[IVXLC]{1,7}\.?(?:\s+[A-Z][^a-z]{2,60})?")
_NUMBERED = re.compile(r"(\d{1,3}(?:\.\d{1,3})+)\.?\s+[^\W\d_a-z].{0,70}")
_MARKED = re.compile(r"#{1,6}\s+\S")
_UNDERLINE = re.compile(r"\s*(=|-|~|\*|\^|_)\1{2,}\s*")
_FENCE = re.compile(r"\s{0,3}(```+)")
_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)]|[a-z]\))\s+\S")
_CAPITALS_LIMIT = 70  # characters of a heading in capitals
_SENTENCE_END = (".", "!", "?", ",", ";", ":", "…")
_QUOTES = "\"'“”‘’«»„"


def read_blocks(text: str, name: str = "") -> list[Block]:
    """Cuts a text into blocks.

    Args:
        text: plain text or Markdown.
        name: of its file; Markdown is known by its suffix.
    """
    if (
        PurePath(name.partition(", text ")[0]).suffix.lower() in MARKDOWN_SUFFIXES
        and len(text) <= MARKDOWN_LIMIT
    ):
        from core.data.documents.markdown import read_markdown_blocks

        return read_markdown_blocks(text)
    return read_plain_blocks(text)


def read_plain_blocks(text: str) -> list[Block]:
    """Cuts a plain text at its blank lines; fenced code stays one block."""
    blocks: list[Block] = []
    lines: list[str] = []
    fence = ""

    def close() -> None:
        if any(line.strip() for line in lines):
            blocks.extend(_classify("\n".join(lines).strip("\n")))
        lines.clear()

    for line in text.split("\n"):
        if match := _FENCE.match(line):
            if not fence:
                close()
                fence = match[1]
                lines.append(line)
                continue
            if line.strip().startswith(fence):
                fence = ""
                lines.append(line)
                close()
                continue
        if fence or line.strip():
            if not fence and _MARKED.match(line):
                close()
                lines.append(line)
                close()
            else:
                lines.append(line)
        else:
            close()
    close()
    return blocks


def _classify(text: str) -> list[Block]:
    """The block of a paragraph; two blocks if it begins with an underlined heading."""
    if _FENCE.match(text):
        return [Block("code", text)]
    lines = text.split("\n")
    if _MARKED.match(text):
        return [Block("heading", text, len(text) - len(text.lstrip("#")))]
    if len(lines) > 1 and _is_underlined(lines[0], lines[1]):
        level = 1 if lines[1].strip()[0] == "=" else 2
        rest = "\n".join(lines[2:])
        return [Block("heading", "\n".join(lines[:2]), level), *([Block("paragraph", rest)] if rest else [])]
    if level := _find_level([line.strip() for line in lines]):
        return [Block("heading", text, level)]
    if _ITEM.match(lines[0]) and sum(bool(_ITEM.match(line)) for line in lines) > 1:
        return [Block("list", text)]
    return [Block("paragraph", text)]


def _is_underlined(title: str, line: str) -> bool:
    match = _UNDERLINE.fullmatch(line)
    return match is not None and len(title.strip()) <= 100 and len(line.strip()) >= 0.6 * len(title.strip())


def _find_level(lines: list[str]) -> int:
    """The level of a heading of up to three lines, such as "CHAPTER I." above a title; 0 for other text."""
    first = lines[0]
    if len(lines) > 3 or any(len(line) > 100 for line in lines):
        return 0
    if match := _CHAPTER.fullmatch(first):
        if len(lines) == 1 or not (match["rest"] or "").strip(".:)—–- "):
            return 1 if match["part"] else 2
        return 0
    if _ASIAN_CHAPTER.fullmatch(first):
        return 2
    if len(lines) > 1:
        return 0
    if _NAMED.fullmatch(first) or _ROMAN.fullmatch(first):
        return 2
    if match := _NUMBERED.fullmatch(first):
        return 0 if first.endswith(_SENTENCE_END) else match[1].count(".") + 1
    return 3 if _is_in_capitals(first) else 0


def _is_in_capitals(line: str) -> bool:
    """Whether a line is a title in capitals; a shout of dialogue has quotes or an exclamation mark."""
    letters = [c for c in line if c.isalpha()]
    return (
        len(letters) >= 4
        and len(line) <= _CAPITALS_LIMIT
        and line.upper() == line != line.lower()
        and 2 * len(letters) >= len(line)
        and line[0] not in _QUOTES
        and not line.endswith((*_SENTENCE_END, *_QUOTES))
    )
