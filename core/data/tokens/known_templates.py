"""Chat templates that are known: by their digest, and by what they write for two short conversations.

A template with a known digest is rendered in this process; every other one in a process of its own
(`core.data.tokens.template_process`). What the known ones write is what `core.data.tokens.template_review`
compares a template with.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

# A template never reads a text, so these words stand for all texts.
CONVERSATIONS = (
    (
        {"role": "system", "content": "SYSTEM"},
        {"role": "user", "content": "QUESTION"},
        {"role": "assistant", "content": "ANSWER"},
        {"role": "user", "content": "NEXT"},
    ),
    ({"role": "user", "content": "QUESTION"},),
)
# What stands for the control tokens of a tokenizer, and the settings of an answer without a thought.
SETTINGS = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "add_generation_prompt": True,
    "enable_thinking": False,
    "thinking": False,
}


@dataclass(frozen=True)
class KnownTemplate:
    """A template of a family, or a usual form of conversations.

    Attributes:
        title: whose it is.
        model_types: families that use it; none for a form of ours (`core.gguf.templates`).
        digest: of `digest_of`.
        long, short: what it writes for the two of `CONVERSATIONS`, with an open answer; "" where it refuses.
    """

    title: str
    model_types: tuple[str, ...]
    digest: str
    long: str
    short: str

    @property
    def texts(self) -> tuple[str, str]:
        """What it writes for the two conversations."""
        return self.long, self.short


def digest_of(template: str) -> str:
    """The sha256 of a template; a line break at its end does not count."""
    return hashlib.sha256(template.rstrip("\n").encode("utf-8", "replace")).hexdigest()


@lru_cache(maxsize=16)
def is_known(template: str) -> bool:
    """Whether a template is one of those below, letter by letter."""
    return digest_of(template) in DIGESTS


def list_templates(model_type: str) -> tuple[KnownTemplate, ...]:
    """The known templates of a family; empty for a family without any."""
    return tuple(known for known in TEMPLATES if model_type in known.model_types)


TEMPLATES = (
    KnownTemplate(
        "ChatML",
        (),
        "448b526c04bda278b9f056a1eb4c798be6c73bc47e237fee71d8377091f9576f",
        "<|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\n"
        "QUESTION<|im_end|>\n<|im_start|>assistant\nANSWER<|im_end|>\n"
        "<|im_start|>user\nNEXT<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n",
    ),
    KnownTemplate(
        "Llama 3 form",
        (),
        "be2e76bd49a22161a04ab3295bfcee850226144cd9dc837187fd41ff0de880a9",
        "<bos><|start_header_id|>system<|end_header_id|>\n\n"
        "SYSTEM<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "QUESTION<|eot_id|><|start_header_id|>assistant<|end_header_i"
        "d|>\n\nANSWER<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "NEXT<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<bos><|start_header_id|>user<|end_header_id|>\n\n"
        "QUESTION<|eot_id|><|start_header_id|>assistant<|end_header_i"
        "d|>\n\n",
    ),
    KnownTemplate(
        "Gemma form",
        (),
        "42b8bd8e3ff653d8e8c4fc54d45794397ae51bf4a3b8632c942403785787b71d",
        "<bos><start_of_turn>user\nSYSTEM\n\nQUESTION<end_of_turn>\n"
        "<start_of_turn>model\nANSWER<end_of_turn>\n<start_of_turn>user\n"
        "NEXT<end_of_turn>\n<start_of_turn>model\n",
        "<bos><start_of_turn>user\nQUESTION<end_of_turn>\n<start_of_turn>model\n",
    ),
    KnownTemplate(
        "Phi-3 form",
        (),
        "c5640f2e37c01a06c8fea56fd2261a54acd0ea8755d90d8815d654225f634be2",
        "<|system|>\nSYSTEM<|end|>\n<|user|>\nQUESTION<|end|>\n<|assistant|>\n"
        "ANSWER<|end|>\n<|user|>\nNEXT<|end|>\n<|assistant|>\n",
        "<|user|>\nQUESTION<|end|>\n<|assistant|>\n",
    ),
    KnownTemplate(
        "INST form",
        (),
        "931d4e07c3f5050d3f8cd76b7c9533d90ad99965bf1a9472bef4968b910a4620",
        "<bos>[INST] SYSTEM\n\nQUESTION [/INST] ANSWER<eos>[INST] NEXT [/INST]",
        "<bos>[INST] QUESTION [/INST]",
    ),
    KnownTemplate(
        "the embedded base",
        ("llama",),
        "6f24638e0e8f35881f2cea5bb934b6761941fe69fab9d8c55ec003dcab379c6f",
        "<|system|>SYSTEM<|end|><|user|>QUESTION<|end|><|assistant|>A"
        "NSWER<|end|><|user|>NEXT<|end|><|assistant|>",
        "<|user|>QUESTION<|end|><|assistant|>",
    ),
    KnownTemplate(
        "SmolLM2",
        ("llama",),
        "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
        "<|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\n"
        "QUESTION<|im_end|>\n<|im_start|>assistant\nANSWER<|im_end|>\n"
        "<|im_start|>user\nNEXT<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by "
        "Hugging Face<|im_end|>\n<|im_start|>user\nQUESTION<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    KnownTemplate(
        "Llama 3",
        ("llama",),
        "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122",
        "<bos><|start_header_id|>system<|end_header_id|>\n\n"
        "SYSTEM<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "QUESTION<|eot_id|><|start_header_id|>assistant<|end_header_i"
        "d|>\n\nANSWER<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "NEXT<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<bos><|start_header_id|>user<|end_header_id|>\n\n"
        "QUESTION<|eot_id|><|start_header_id|>assistant<|end_header_i"
        "d|>\n\n",
    ),
    KnownTemplate(
        "Llama 3.1",
        ("llama",),
        "93c0e9aa3629bbd77e68dbc0f5621f6e6b23aa8d74b932595cdb8d64684526d7",
        "<bos><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        "SYSTEM<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "QUESTION<|eot_id|><|start_header_id|>assistant<|end_header_i"
        "d|>\n\nANSWER<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "NEXT<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<bos><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "QUESTION<|eot_id|><|start_header_id|>assistant<|end_header_i"
        "d|>\n\n",
    ),
    KnownTemplate(
        "Llama 3.2",
        ("llama",),
        "d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f",
        "<bos><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        "SYSTEM<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "QUESTION<|eot_id|><|start_header_id|>assistant<|end_header_i"
        "d|>\n\nANSWER<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "NEXT<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<bos><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "QUESTION<|eot_id|><|start_header_id|>assistant<|end_header_i"
        "d|>\n\n",
    ),
    KnownTemplate(
        "DeepSeek-R1 distilled",
        ("llama", "qwen2"),
        "56a1447ad31926fdc21fb07e56e5642bd9c850c4f52d8c8af7bbe5f079a84f5f",
        "<bos>SYSTEM<｜User｜>QUESTION<｜Assistant｜>ANSWER<｜end▁of▁sente"
        "nce｜><｜User｜>NEXT<｜Assistant｜><think>\n",
        "<bos><｜User｜>QUESTION<｜Assistant｜><think>\n",
    ),
    KnownTemplate(
        "Qwen2.5",
        ("qwen2",),
        "55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a",
        "<|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\n"
        "QUESTION<|im_end|>\n<|im_start|>assistant\nANSWER<|im_end|>\n"
        "<|im_start|>user\nNEXT<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\n"
        "You are Qwen, created by Alibaba Cloud. You are a helpful "
        "assistant.<|im_end|>\n<|im_start|>user\nQUESTION<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    KnownTemplate(
        "Qwen3",
        ("qwen3",),
        "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8",
        "<|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\n"
        "QUESTION<|im_end|>\n<|im_start|>assistant\nANSWER<|im_end|>\n"
        "<|im_start|>user\nNEXT<|im_end|>\n<|im_start|>assistant\n<think>\n\n"
        "</think>\n\n",
        "<|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    KnownTemplate(
        "Qwen3 2507",
        ("qwen3",),
        "64f85b198065d0fba2a81f37e10ed68161ce2c19a754c7100e67e0ca2ee9c326",
        "<|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\n"
        "QUESTION<|im_end|>\n<|im_start|>assistant\nANSWER<|im_end|>\n"
        "<|im_start|>user\nNEXT<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n",
    ),
    KnownTemplate(
        "Gemma and Gemma 2",
        ("gemma", "gemma2"),
        "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6",
        "",
        "<bos><start_of_turn>user\nQUESTION<end_of_turn>\n<start_of_turn>model\n",
    ),
    KnownTemplate(
        "Gemma 3",
        ("gemma3", "gemma3_text"),
        "8d9e3a3c114fb2053ec500184677af4f7e5f8ec2582443cd535834e68b3ade29",
        "<bos><start_of_turn>user\nSYSTEM\n\nQUESTION<end_of_turn>\n"
        "<start_of_turn>model\nANSWER<end_of_turn>\n<start_of_turn>user\n"
        "NEXT<end_of_turn>\n<start_of_turn>model\n",
        "<bos><start_of_turn>user\nQUESTION<end_of_turn>\n<start_of_turn>model\n",
    ),
    KnownTemplate(
        "Phi-3",
        ("phi3",),
        "dcaee66df77bfbb789ec541fe713218da30225a526f1db97138fc39ee6dc56aa",
        "<|system|>\nSYSTEM<|end|>\n<|user|>\nQUESTION<|end|>\n<|assistant|>\n"
        "ANSWER<|end|>\n<|user|>\nNEXT<|end|>\n<|assistant|>\n",
        "<|user|>\nQUESTION<|end|>\n<|assistant|>\n",
    ),
    KnownTemplate(
        "Phi-3.5",
        ("phi3",),
        "78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90",
        "<|system|>\nSYSTEM<|end|>\n<|user|>\nQUESTION<|end|>\n<|assistant|>\n"
        "ANSWER<|end|>\n<|user|>\nNEXT<|end|>\n<|assistant|>\n",
        "<|user|>\nQUESTION<|end|>\n<|assistant|>\n",
    ),
    KnownTemplate(
        "Command R",
        ("cohere",),
        "90c33aee14aa2a226127516d48ee9184c9b90745d4a04c484621ec2e82fb712c",
        "<bos><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>SYSTEM<|END_OF_T"
        "URN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>QUESTION<|EN"
        "D_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>ANS"
        "WER<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|"
        ">NEXT<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_T"
        "OKEN|>",
        "<bos><|START_OF_TURN_TOKEN|><|USER_TOKEN|>QUESTION<|END_OF_T"
        "URN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    KnownTemplate(
        "GLM-4.5",
        ("glm4_moe",),
        "44f815868bf02fa458dd2f741a338046f4bf45f398eb6d067766726b9d96cce3",
        "[gMASK]<sop><|system|>\nSYSTEM<|user|>\nQUESTION/nothink<|assistant|>\n"
        "<think></think>\nANSWER<|user|>\nNEXT/nothink<|assistant|>\n"
        "<think></think>",
        "[gMASK]<sop><|user|>\nQUESTION/nothink<|assistant|>\n<think></think>",
    ),
    KnownTemplate(
        "LFM2",
        ("lfm2",),
        "cef187400d62a59507aab3a642ea9a8d2a2ef263562bc3430560e116945273cf",
        "<bos><|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\n"
        "QUESTION<|im_end|>\n<|im_start|>assistant\nANSWER<|im_end|>\n"
        "<|im_start|>user\nNEXT<|im_end|>\n<|im_start|>assistant\n",
        "<bos><|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n",
    ),
    KnownTemplate(
        "LFM2, second revision",
        ("lfm2",),
        "5504d163d879bfb6fd4135b7fa3d56768b2e69dd718338f7b146750289f46ab0",
        "<bos><|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\n"
        "QUESTION<|im_end|>\n<|im_start|>assistant\nANSWER<|im_end|>\n"
        "<|im_start|>user\nNEXT<|im_end|>\n<|im_start|>assistant\n",
        "<bos><|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n",
    ),
    KnownTemplate(
        "LFM2.5",
        ("lfm2",),
        "6d65c8804847ad74eea912dd7eca3dc1cf7a457b53a77f47d841a14121910963",
        "<bos><|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\n"
        "QUESTION<|im_end|>\n<|im_start|>assistant\nANSWER<|im_end|>\n"
        "<|im_start|>user\nNEXT<|im_end|>\n<|im_start|>assistant\n",
        "<bos><|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n",
    ),
    KnownTemplate(
        "LFM2.5, second revision",
        ("lfm2",),
        "c5b67247c9f736f6c40eaa91ae1ef27dc67f5b041eedaadb97a1bea5030fb0ff",
        "<bos><|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\n"
        "QUESTION<|im_end|>\n<|im_start|>assistant\nANSWER<|im_end|>\n"
        "<|im_start|>user\nNEXT<|im_end|>\n<|im_start|>assistant\n",
        "<bos><|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n",
    ),
)
OTHERS = frozenset(  # without texts: plain forms of ours, and long templates
    (
        "42f5be720a669d5a66f27892497d5c066e6f1f9c6a2ebfb2cdb5db75ef6fda30",  # plain
        "b2f622cd4c3926cbc7847868623f479346d486dd4988d5469d622f18e3505394",  # joined
        "a28bf221d0fd66ef5f7d5e74b53c71113e4505bedd10638c060537f28f3247c1",  # encoder
        "20717f06093bd90dc353fc0eb300144a373ccb5b1a6959f649d9d91b748492e2",  # plain, BOS
        "1da1df660e9f7e54e1baebaec16dc45c03e80e8d912860d57fb1cf615f3586e3",  # joined, BOS
        "2147c474f41b522b7296f74692b9f31e45f49a31465960576a9d321339c5915a",  # cohere2
        "a4c9919cbbd4acdd51ccffe22da049264b1b73e59055fa58811a99efbd7c8146",  # gptoss
        "33204f1acb5bd0002713e16a593847f24ceeafe711ed88bda2a352dc996a3373",  # gemma4
        "55572b8d3c8342044e25874c73fe5234b661fa0a57a57f6ef75b58e03d7d959a",  # gemma4_v2
        "781d10940fbc44be40064b5d43a056fc486c84ceaa55538226368b57314132bf",  # gemma4_v3
        "2f1b4d75d067bae3fe44e676721c7f077d243bc007156cb9c2f8b5836613d082",  # gemma4_v4
        "603a42db292c25278e9b23d94c7abbe77453f13e26a053c43c5c2f900b4136f7",  # gemma4_v5
        "a4aee8afcf2e0711942cf848899be66016f8d14a889ff9ede07bca099c28f715",  # qwen3_5_think
        "273d8e0e683b885071fb17e08d71e5f2a5ddfb5309756181681de4f5a1822d80",  # qwen3_5_nothink
        "e84f32a23fdda27689f868aa4a1a5621f41133e51a48d7f3efcbea2839574259",  # qwen3_6
        "c3cf9e34abf4f9e36c2d72165aa9c132d3e2a725b6c2586aaa3a8af9d7a81041",  # qwen3_8
        "563b1ce7d61d50a9b4c7439a912a1116f095b712df5b5e4d3e1116049874eb64",  # deepseekv3
        "43a92aacc2e169bb37055e4d8b0df31edfdc8657d8c387fcf98254cb246e626a",  # nemotron_3_nano
    )
)
DIGESTS = OTHERS | {known.digest for known in TEMPLATES}
