"""A LLaVA checkpoint of transformers, tiny and random, with a processor that reads any text."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")


def byte_tokenizer(
    marks: tuple[str, ...] = MARKS, named: dict[str, str] | None = None
) -> hf.PreTrainedTokenizerFast:
    """One token per byte: reads any language, and needs no vocabulary from elsewhere."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named or {},
    )


def write_llava(folder: Path) -> Path:
    """Writes model and processor: 16 visual tokens per image of 56 pixels."""
    tokenizer = byte_tokenizer()
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4}
    tower = {"hidden_size": 32, "intermediate_size": 64, "image_size": 56, "patch_size": 14}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**tower, **heads),
        text_config=hf.LlamaConfig(**text, **heads),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=56),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8)  # so that little changes matter
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
