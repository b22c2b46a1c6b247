"""Pre-trains the embedded base from random weights: tokenizer, model and training in one command.

    python -m assets.pretrain --out assets/embedded-base

The text comes from `assets.world`.
"""

import argparse
import itertools
import json
import logging
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from assets.world import chat
from assets.world.general import write_general
from assets.world.things import build_world

logger = logging.getLogger(__name__)

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SPECIALS = [PAD, BOS, EOS, chat.SYSTEM, chat.USER, chat.ASSISTANT, chat.END]


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the base; `PRETRAINING.json` stores them under these names.

    Attributes:
        seed: seed of the weights and of the order of the text.
        world_seed: seed of the people and gadgets.
        vocabulary: tokens of the vocabulary, including the special tokens.
        hidden: hidden size.
        layers: decoder layers.
        heads: attention heads.
        feed_forward: intermediate size of the gated MLP.
        context: longest text in tokens.
        block: tokens of one training row.
        long_share: share of the steps, at the end, with rows of the full context, so that the model
            learns the far positions.
        rows: rows of `block` tokens in one step, over all ranks.
        steps: optimizer steps.
        warmup: steps of linear warm-up.
        peak_rate: peak learning rate of the embedding and the norms (AdamW).
        matrix_rate: peak learning rate of the matrices inside the layers (Muon).
        settle_step: step from which all learning rates are multiplied by `settle`. A high rate learns the
            language in few steps, but facts and copying are learned only at a low rate.
        settle: see `settle_step`.
        last_rate: learning rate of the last step as a share of the peak (cosine).
        weight_decay: weight decay of the matrices.
        clip: largest gradient norm.
    """

    seed: int = 0
    world_seed: int = 7
    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 4
    heads: int = 8
    feed_forward: int = 640
    context: int = 512
    block: int = 256
    long_share: float = 0.1
    rows: int = 16
    steps: int = 2200
    warmup: int = 40
    peak_rate: float = 2.5e-3
    matrix_rate: float = 7.5e-3
    settle_step: int = 800
    settle: float = 0.25
    last_rate: float = 0.02
    weight_decay: float = 0.1
    clip: float = 1.0


def train_tokenizer(recipe: Recipe, *, documents: int = 20_000) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on the same text distribution as the model."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = write_general(random.Random(f"tokenizer-{recipe.seed}"), build_world(recipe.world_seed))
    tokenizer.train_from_iterator(itertools.islice(text, documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[chat.SYSTEM, chat.USER, chat.ASSISTANT, chat.END],
        chat_template=chat.TEMPLATE,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Builds a Llama of the recipe's shape with random weights."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(chat.END)],
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=160,
        do_sample=False,
    )
    return model


def pack_rows(rng: random.Random, tokenizer: PreTrainedTokenizerFast, world_seed: int) -> Iterator[list[int]]:
    """Concatenates documents, with eos between them, and cuts them into rows; `send(length)` returns a row.

        row   [bos]? document eos document eos docum|   the last document is cut off at the end of the row
              every row opens with a new document, half of the rows with bos before it

    Yields:
        Token ids of one row, of the length that was last sent.
    """
    text = write_general(rng, build_world(world_seed))
    length = yield []
    while True:
        row = [tokenizer.bos_token_id] if rng.random() < 0.5 else []
        while len(row) < length:
            documents = list(itertools.islice(text, 4))
            for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]:
                row += [*ids, tokenizer.eos_token_id]
        length = yield row[:length]


def lr_scale(recipe: Recipe, step: int) -> float:
    """Returns the factor on the peak learning rate at a step: linear warm-up, cosine decay, and one drop."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    low = recipe.last_rate
    drop = recipe.settle if step >= recipe.settle_step else 1.0
    return drop * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def _average_gradients(model: torch.nn.Module, world_size: int) -> None:
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world_size
    offset = 0
    for grad in grads:
        grad.copy_(flat[offset : offset + grad.numel()].view_as(grad))
        offset += grad.numel()


def _orthogonalise(gradients: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Approximates the nearest semi-orthogonal matrices by Newton-Schulz (Jordan et al., Muon, 2024).

    Args:
        gradients: (N, rows, columns), N matrices of one shape.
        rounds: iterations of the quintic polynomial.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = gradients.shape[1] > gradients.shape[2]
    x = gradients.mT if tall else gradients
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for the matrices inside the layers; matrices of one shape are stacked."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                directions = []
                for p in parameters:
                    velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                    velocity.lerp_(p.grad, 1 - group["momentum"])
                    directions.append(p.grad.lerp(velocity, group["momentum"]))
                updates = _orthogonalise(torch.stack(directions))
                # With this factor, updates have the RMS of AdamW's, so one rate suits both (arXiv 2502.16982)
                size = 0.2 * max(shape) ** 0.5
                for p, update in zip(parameters, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)


def build_optimizers(recipe: Recipe, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Builds Muon for the matrices inside the layers and AdamW for the embedding and the norms."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" in n]
    norms = [p for p in model.parameters() if p.ndim < 2]
    adam = [{"params": outer, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    muon = Muon(inner, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay)
    adamw = torch.optim.AdamW(adam, lr=recipe.peak_rate, betas=(0.9, 0.95), fused=True)
    for optimizer, peak in ((muon, recipe.matrix_rate), (adamw, recipe.peak_rate)):
        for group in optimizer.param_groups:
            group["peak"] = peak
    return [muon, adamw]


def _train(rank: int, world_size: int, recipe: Recipe, scratch: str, port: int) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    folder = Path(scratch)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    model = build_model(recipe, tokenizer).train()
    optimizers = build_optimizers(recipe, model)
    rows = pack_rows(random.Random(f"pretrain-{recipe.seed}-{rank}"), tokenizer, recipe.world_seed)
    next(rows)
    state_path = folder / f"state-{rank}.pt"
    first, seen, spent = 0, 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=False)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, seen, spent = state["step"], state["seen"], state["seconds"]
        for step in range(first):  # the text depends on the seed alone, so skip what the finished steps read
            length = _row_length(recipe, step)
            for _ in range(recipe.rows * recipe.block // length // world_size):
                rows.send(length)
    began, nats, counted = time.monotonic() - spent, 0.0, 0
    for step in range(first, recipe.steps):
        length = _row_length(recipe, step)
        rows_per_rank = recipe.rows * recipe.block // length // world_size
        ids = torch.tensor([rows.send(length) for _ in range(rows_per_rank)])
        logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        _average_gradients(model, world_size)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * lr_scale(recipe, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        nats, counted = nats + loss.item(), counted + 1
        seen += recipe.rows * recipe.block
        if rank == 0 and (step + 1) % 20 == 0:
            minutes = (time.monotonic() - began) / 60
            logger.info(
                "step %d/%d  loss %.4f  %.2fM tokens  %.1f min",
                step + 1,
                recipe.steps,
                nats / counted,
                seen / 1e6,
                minutes,
            )
            nats, counted = 0.0, 0
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            state = {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "step": step + 1,
                "seen": seen,
                "seconds": time.monotonic() - began,
            }
            torch.save(state, f"{state_path}.partial")
            os.replace(f"{state_path}.partial", state_path)
    dist.destroy_process_group()


def _row_length(recipe: Recipe, step: int) -> int:
    return recipe.context if step >= recipe.steps * (1 - recipe.long_share) else recipe.block


def save_base(recipe: Recipe, scratch: Path, out: Path) -> None:
    """Saves the trained weights in half precision as a transformers model folder."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(scratch / "tokenizer")
    model = build_model(recipe, tokenizer)
    state = torch.load(scratch / "state-0.pt", weights_only=False)
    model.load_state_dict(state["model"])
    model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = {
        "recipe": asdict(recipe),
        "tokens": state["seen"],
        "step": state["step"],
        "minutes": round(state["seconds"] / 60, 1),
    }
    (out / "PRETRAINING.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Trains the base, or resumes an interrupted run."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("assets/embedded-base"), help="folder for the finished base"
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path("/tmp/embedded-base-scratch"),
        help="folder for the training state",
    )
    parser.add_argument("--processes", type=int, default=2, help="number of processes, with one thread each")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--rows", type=int, default=Recipe.rows)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--port", type=int, default=29533)
    parser.add_argument(
        "--save-only", action="store_true", help="write the base from the last saved state, without training"
    )
    args = parser.parse_args()
    recipe = Recipe(seed=args.seed, steps=args.steps, rows=args.rows)
    args.scratch.mkdir(parents=True, exist_ok=True)
    if not args.save_only:
        if not (args.scratch / "tokenizer").exists():
            train_tokenizer(recipe).save_pretrained(args.scratch / "tokenizer")
        logger.info("recipe %s", recipe)
        mp.spawn(_train, (args.processes, recipe, str(args.scratch), args.port), nprocs=args.processes)
    save_base(recipe, args.scratch, args.out)
    logger.info("saved %s", args.out)


if __name__ == "__main__":
    main()
