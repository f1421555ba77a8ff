"""Tiny Qwen2 models that read and write characters, as folders of weights."""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

torch.set_num_threads(1)

PIECES = ["<pad>", "<end>", *string.printable]
END = "<end>"
IMPOSSIBLE = -30.0
"""A logit that next to others is as good as none."""


def tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    characters = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, "<pad>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    characters.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token=END, padding_side="left"
    )
    made.chat_template = chat_template
    return made


def random_model(seed: int, **changes: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    settings = {"vocab_size": len(PIECES), "max_position_embeddings": 512, **sizes, **heads, **ids}
    return Qwen2ForCausalLM(Qwen2Config(**{**settings, **changes}))


def constant_model(weights: Mapping[str, float], **changes: Any) -> Qwen2ForCausalLM:
    """Writes each piece with a probability in proportion to its weight, whatever it has read.

    All embeddings are ones, which the layer leaves alone and the norm too, so the head's row sums
    are the logits.
    """
    model = random_model(0, **changes)
    width = model.config.hidden_size
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.fill_(IMPOSSIBLE / width)
        for piece, weight in weights.items():
            logit = torch.tensor(weight).log()
            model.lm_head.weight[PIECES.index(piece)] = logit / width
    return model


def save(model: Qwen2ForCausalLM, folder: Path, chat_template: str | None = None) -> Path:
    model.save_pretrained(folder)
    tokenizer(chat_template).save_pretrained(folder)
    return folder
