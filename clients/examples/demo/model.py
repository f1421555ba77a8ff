"""A tiny Qwen2 that reads characters: its tokenizer, its warm start, and how well it answers."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import torch
from tasks import Task, score
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

MAX_ANSWER_TOKENS = 20
"""The longest right answer has 17 tokens and the end."""

WARM_BATCH = 32
WARM_LEARNING_RATE = 3e-3
SAMPLE_ROWS = 256
IGNORED = -100
"""The label of a token that carries no loss."""


def build_tokenizer(tasks: Iterable[Task]) -> PreTrainedTokenizerFast:
    """Characters, with one token for each wording that all questions of a family share."""
    questions = defaultdict(list)
    characters: set[str] = set()
    for task in tasks:
        questions[task.level.family].append(task.question)
        characters.update(task.question, task.answer)
    wordings = {" + ", " - ", ", ", "ascending order: ", "descending order: "}
    wordings |= {"['", "', '", "']", ".0", ".0, ", ".0', '", ".0']"}
    for family in questions.values():
        backward = [question[::-1] for question in family]
        wordings |= {_common_start(family), _common_start(backward)[::-1]}
    longest_first = sorted(wordings - characters - {""}, key=lambda text: (-len(text), text))
    pieces = ["<pad>", "<end>", *longest_first, *sorted(characters)]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, "<pad>"))
    pattern = "|".join(map(re.escape, longest_first)) + r"|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """About 167,000 parameters, random."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=192,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def warm_start(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[Task],
    *,
    steps: int,
    seed: int,
    on_step: Callable[[int, float], None],
) -> None:
    """Supervised training on right answers, so that sampling sometimes finds one."""
    rng = random.Random(seed)
    examples = [
        (
            tokenizer(task.question)["input_ids"],
            [*tokenizer(task.answer)["input_ids"], tokenizer.eos_token_id],
        )
        for task in tasks
    ]
    # Neighbours of about equal length make batches with little padding.
    examples.sort(key=lambda example: len(example[0]) + len(example[1]) + 3 * rng.random())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=WARM_LEARNING_RATE, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, max(1 - step / steps, 0.02))
    )
    model.train()
    for step in range(steps):
        first = rng.randrange(len(examples) - WARM_BATCH)
        loss = model(**_collate(examples[first : first + WARM_BATCH])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step + 1, loss.item())


def pass_rate(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[Task],
    *,
    attempts: int,
    seed: int,
) -> float:
    """The share of sampled answers that are right. Leaves the global generator as it was."""
    passes = 0.0
    by_length = sorted(tasks, key=lambda task: len(task.question))
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for first in range(0, len(by_length), SAMPLE_ROWS // attempts):
            asked = by_length[first : first + SAMPLE_ROWS // attempts]
            prompts = tokenizer(
                [task.question for task in asked], return_tensors="pt", padding=True
            )
            sampled = model.generate(
                **prompts,
                do_sample=True,
                top_k=0,
                num_return_sequences=attempts,
                max_new_tokens=MAX_ANSWER_TOKENS,
            )
            answers = tokenizer.batch_decode(
                sampled[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
            )
            payloads = [task.payload for task in asked for _ in range(attempts)]
            passes += sum(map(score, answers, payloads))
    model.train(was_training)
    return passes / (len(tasks) * attempts)


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # what these two share, all share
    length = 0
    while first[length : length + 1] == last[length : length + 1] != "":
        length += 1
    return first[:length]


def _collate(examples: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(question) + len(answer) for question, answer in examples)
    rows = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}
    tensors = {name: torch.full((len(examples), width), fill) for name, fill in rows.items()}
    for row, (question, answer) in enumerate(examples):
        length = len(question) + len(answer)
        tensors["input_ids"][row, :length] = torch.tensor(question + answer)
        tensors["labels"][row, len(question) : length] = torch.tensor(answer)
        tensors["attention_mask"][row, :length] = 1
    return tensors
