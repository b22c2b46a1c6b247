"""The tokenizer of a GGUF file as a folder of transformers has it, with the ids that llama.cpp gives a text.

    tokenizer.ggml.model   what it is
    gpt2                   BPE over bytes; `tokenizer.ggml.pre` names how a text is split first
    llama                  BPE over characters with a blank as "▁", and bytes for unknown characters; without
                           merges: two neighbours are merged where the vocabulary has both together, the ones
                           with the best score first

Tokens of the kinds control and user-defined stay whole in a text. Sources: the vocabularies of llama.cpp, and
its regular expressions for splitting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import BaseModelError
from core.gguf.header import GgufHeader

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of tokens
BLANK = "\u2581"
# Tokens that end an answer whatever the file names as its end: of ChatML, Llama 3, Gemma and Phi-3.
END_TOKENS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<|end|>",
)  # fmt: skip
# Of models that are called Phi-3, llama.cpp removes the blanks behind all whole tokens but these.
PHI3 = re.compile("phi-?3", re.IGNORECASE)
KEEPS_BLANKS = ("<unk>", "<s>", "<|endoftext|>")
PROBES = (
    "The lamp is in room 1234, isn't it?\n\n  Two blanks; été, 中文, 🙂.",
    " leading and trailing blank ",
    "x = [1, 22, 333]\t# tab",
)

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_ENDS}"
_LLAMA3 = rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_LETTERS}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_SIGNS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDS}"
_TEKKEN = rf"{_CASED % ('', '')}|\p{{N}}|{_SIGNS}"
_GPT4O = rf"{_CASED % (f'{_CONTRACTIONS}?', f'{_CONTRACTIONS}?')}|\p{{N}}{{1,3}}|{_SIGNS}"
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|`]+", WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True)
class Split:
    """How a text is split before it is encoded.

    Attributes:
        patterns: applied one after the other to the parts; what a pattern finds is a part of its own.
        whole_words: a part that is a token is not put together from merges.
        adds_bos: where the file does not say it.
    """

    patterns: Sequence[str]
    whole_words: bool = False
    adds_bos: bool = False


_SPLITS = {
    Split(_DEFAULT): ("default",),
    Split((WORDS,)): ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"),
    Split((r"\p{N}", WORDS)): ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"),
    Split((_LLAMA3,), True, True): ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"),
    Split((_LLAMA3,)): ("dbrx", "smaug-bpe"),
    Split((_QWEN2,)): ("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"),
    Split((_TEKKEN,), True, True): ("tekken",),
    Split((_GPT4O,)): ("gpt-4o", "llama4"),
}
SPLITS = {name: split for split, names in _SPLITS.items() for name in names}
USUAL_SPLITS = {"qwen2": "qwen2", "qwen3": "qwen2"}  # of files that were written before the key existed


@dataclass
class GgufTokenizer:
    """A tokenizer and what belongs to it.

    Attributes:
        backend: of the library tokenizers.
        config: the content of tokenizer_config.json.
        template: the chat template in Jinja, or "".
        ids: "bos_token_id", "eos_token_id", "pad_token_id" for config.json; those that the file has.
        end_ids: the tokens that end an answer, the usual one first.
        notes: a sentence each.
    """

    backend: Any
    config: dict[str, Any]
    template: str
    ids: dict[str, int]
    end_ids: list[int]
    notes: list[str] = field(default_factory=list)


def build_tokenizer(
    header: GgufHeader, context: int, stops: Sequence[str] = (), template: str = ""
) -> GgufTokenizer:
    """Builds the tokenizer.

    Args:
        context: the longest text in tokens.
        stops: texts that end an answer; those that are one token become end tokens.
        template: the chat template for a file without one.

    Raises:
        BaseModelError: the vocabulary is damaged, or of a kind that is not supported.
    """
    vocabulary = _Vocabulary(header)
    kind = header.metadata.get("tokenizer.ggml.model")
    builders = {"gpt2": _build_byte_level, "llama": _build_sentencepiece}
    if kind not in builders:
        raise BaseModelError(
            f"The tokenizer of {header.name!r} is of the kind {kind!r}; these can be converted: "
            f"{', '.join(builders)}.",
            "Choose another model, or a folder that transformers' save_pretrained wrote.",
        )
    backend, adds_bos, notes = builders[kind](header, vocabulary)
    backend.add_special_tokens(vocabulary.list_whole_tokens(CONTROL, UNKNOWN))
    backend.add_tokens(vocabulary.list_whole_tokens(USER_DEFINED))
    _set_post_processor(header, backend, vocabulary, adds_bos)
    own_template = header.metadata.get("tokenizer.chat_template")
    if isinstance(own_template, str) and own_template.strip():
        template = own_template
    names = {
        short: vocabulary.token_of(key)
        for short, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        if kind == "llama" or short != "unk"
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        **{f"{short}_token": token for short, token in names.items() if token is not None},
    }
    ids = {
        f"{short}_token_id": vocabulary.ids[token]
        for short, token in names.items()
        if token is not None and short != "unk"
    }
    return GgufTokenizer(backend, config, template, ids, vocabulary.list_end_ids(stops), notes)


class _Vocabulary:
    """The tokens of a file.

    Attributes:
        tokens: text of each id. ids: the reverse; of equal texts, the first. kinds: of each id.
        scores: of each id; empty where the file has none.
    """

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self.tokens: list[str] = self._read_list("tokens", str)
        if not self.tokens:
            raise self._fail("it has no vocabulary")
        count = len(self.tokens)
        self.kinds: list[int] = self._read_list("token_type", int) or [NORMAL] * count
        self.scores: list[float] = self._read_list("scores", float)
        if len(self.kinds) != count or len(self.scores) not in (0, count):
            raise self._fail("the lists of its vocabulary have different lengths")
        self.ids: dict[str, int] = {}
        for i, token in enumerate(self.tokens):
            self.ids.setdefault(token, i)

    def _read_list(self, key: str, kind: type) -> list[Any]:
        values = self._header.metadata.get(f"tokenizer.ggml.{key}", [])
        if not isinstance(values, list) or not all(isinstance(v, kind) for v in values):
            raise self._fail(f"its {key} are not a list of one kind")
        return values

    def _fail(self, reason: str) -> BaseModelError:
        return BaseModelError(
            f"The tokenizer of {self._header.name!r} is damaged: {reason}.", "Copy or download it again."
        )

    def read_merges(self) -> list[tuple[str, str]]:
        """The merges of the file, first ones first."""
        merges = []
        for text in self._read_list("merges", str):
            cut = text.find(" ", 1)  # a part may begin with a blank
            left, right = text[:cut], text[cut + 1 :]
            if cut < 0 or not right:
                raise self._fail(f"the merge {text!r} does not have two parts")
            merges.append((left, right))
        return merges

    def token_of(self, key: str) -> str | None:
        """The token that a key names: "eos" is `tokenizer.ggml.eos_token_id`."""
        i = self._header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if i is None or i in (-1, 0xFFFFFFFF):
            return None
        if not isinstance(i, int) or not 0 <= i < len(self.tokens):
            raise self._fail(f"its {key} token is {i!r}, and it has {len(self.tokens):,} tokens")
        return self.tokens[i]

    def list_whole_tokens(self, *kinds: int) -> list[Any]:
        """The tokens of these kinds, as tokens that stay whole in a text."""
        from tokenizers import AddedToken

        special = USER_DEFINED not in kinds
        is_phi3 = PHI3.search(str(self._header.metadata.get("general.name", ""))) is not None
        return [
            AddedToken(token, normalized=False, special=special, rstrip=is_phi3 and token not in KEEPS_BLANKS)
            for i, token in enumerate(self.tokens)
            if self.kinds[i] in kinds and token and self.ids[token] == i
        ]

    def list_end_ids(self, stops: Sequence[str]) -> list[int]:
        """The tokens that end an answer, the one that the file names first."""
        named = [self.token_of(key) for key in ("eos", "eot", "eom")]
        known = [t for t in (*END_TOKENS, *stops) if t in self.ids and self.kinds[self.ids[t]] != NORMAL]
        return list(dict.fromkeys(self.ids[t] for t in (*filter(None, named), *known)))


def _build_byte_level(header: GgufHeader, vocabulary: _Vocabulary) -> tuple[Any, bool, list[str]]:
    """BPE over bytes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    usual = USUAL_SPLITS.get(header.architecture, "default")
    name = header.metadata.get("tokenizer.ggml.pre", "")
    notes = []
    if not name:
        notes.append(f"The file does not say how a text is split into words: {usual!r} was assumed.")
    split = SPLITS.get(name or usual)
    # transformers 5 reads every folder of Qwen2 with its own tokenizer, whatever tokenizer.json says. (It
    # also composes accents, as the tokenizer of the models did, and llama.cpp does not.)
    known = [n for n in SPLITS if header.architecture != "qwen2" or SPLITS[n] is SPLITS["qwen2"]]
    if split is None or (name or usual) not in known:
        raise BaseModelError(
            f"The tokenizer of {header.name!r} splits words in a way ({name!r}) that is not supported.",
            f"These are: {', '.join(known)}. Choose another model.",
        )
    merges = vocabulary.read_merges()
    if not merges:
        raise BaseModelError(
            f"The tokenizer of {header.name!r} is damaged: it has no merges.", "Copy or download it again."
        )
    backend = Tokenizer(
        models.BPE(vocab=vocabulary.ids, merges=_check_merges(header, vocabulary, merges),
                   ignore_merges=split.whole_words)
    )  # fmt: skip
    steps: list[Any] = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in split.patterns]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend, split.adds_bos, notes


def _check_merges(
    header: GgufHeader, vocabulary: _Vocabulary, merges: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The merges; refuses those whose parts or result are not in the vocabulary."""
    ids = vocabulary.ids
    for left, right in merges:
        if left not in ids or right not in ids or left + right not in ids:
            raise BaseModelError(
                f"The tokenizer of {header.name!r} is damaged: its vocabulary lacks a part of the merge "
                f"{f'{left} {right}'!r}.",
                "Copy or download it again.",
            )
    return merges


def _build_sentencepiece(header: GgufHeader, vocabulary: _Vocabulary) -> tuple[Any, bool, list[str]]:
    """BPE over characters, with bytes for characters that the vocabulary lacks."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    if len(vocabulary.scores) != len(vocabulary.tokens):
        raise BaseModelError(
            f"The tokenizer of {header.name!r} is damaged: it has no scores.", "Copy or download it again."
        )
    has_prefix = bool(header.metadata.get("tokenizer.ggml.add_space_prefix", True))
    unknown = vocabulary.token_of("unknown")
    has_bytes = all(f"<0x{b:02X}>" in vocabulary.ids for b in range(256))
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=_derive_merges(vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=has_bytes,
        )
    )
    replace = normalizers.Replace(" ", BLANK)
    first = [normalizers.Prepend(BLANK)] if has_prefix else []
    backend.normalizer = normalizers.Sequence([*first, replace])
    steps: list[Any] = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    return backend, True, []


def _derive_merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Every pair of tokens that the vocabulary has together, the best score of the result first."""
    usable = {
        token: i for token, i in vocabulary.ids.items() if vocabulary.kinds[i] in (NORMAL, USER_DEFINED)
    }
    merges = []
    for token, i in usable.items():
        score = vocabulary.scores[i]
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in usable and right in usable:
                merges.append((-score, i, usable[left], usable[right], left, right))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _set_post_processor(header: GgufHeader, backend: Any, vocabulary: _Vocabulary, adds_bos: bool) -> None:
    """Puts bos before and eos after a text where the file says so."""
    from tokenizers import processors

    bos, eos = vocabulary.token_of("bos"), vocabulary.token_of("eos")
    puts_bos = bos is not None and bool(header.metadata.get("tokenizer.ggml.add_bos_token", adds_bos))
    puts_eos = eos is not None and bool(header.metadata.get("tokenizer.ggml.add_eos_token", False))
    if not puts_bos and not puts_eos:
        return
    before = [f"{bos}:0"] if puts_bos else []
    after = [f"{eos}:0"] if puts_eos else []
    special = [(token, vocabulary.ids[token]) for token in {bos, eos} if token is not None]
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A:0", *after],
        pair=[*before, "$A:0", *after, *[x.replace(":0", ":1") for x in before], "$B:1",
              *[x.replace(":0", ":1") for x in after]],
        special_tokens=special,
    )  # fmt: skip


def save_tokenizer(built: GgufTokenizer, folder: Path, name: str) -> list[str]:
    """Saves the tokenizer, and checks that it gives the same ids once it is loaded again.

    Returns:
        the names of the files.

    Raises:
        BaseModelError: it does not.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    built.backend.save(str(path))
    again = Tokenizer.from_file(str(path))
    special = [token for key, token in built.config.items() if key.endswith("_token")]
    if any(again.encode(text).ids != built.backend.encode(text).ids for text in (*PROBES, *special)):
        raise BaseModelError(
            f"The tokenizer of {name!r} changes when it is saved.",
            "Choose a folder that transformers' save_pretrained wrote.",
        )
    config = json.dumps(built.config, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / "tokenizer_config.json").write_text(f"{config}\n", encoding="utf-8", newline="\n")
    files = ["tokenizer.json", "tokenizer_config.json"]
    if built.template:
        (folder / "chat_template.jinja").write_text(built.template, encoding="utf-8", newline="\n")
        files.append("chat_template.jinja")
    return files
