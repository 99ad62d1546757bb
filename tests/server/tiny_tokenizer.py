"""A byte-level tokenizer and chat template made on the spot, for tests of everything that needs text but no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

CORPUS = [
    "def read_json(path):\n    with open(path) as file:\n        return json.load(file)\n",
    "The quick brown fox jumps over the lazy dog. " * 4,
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich 🦊🌍 漢字 かな",
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking %}Hm. {% endif %}{% endif %}"
)
EOS, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def write_tokenizer(
    folder: Path, *, template: str | None = CHATML, vocab_size: int = 400, special: Sequence[str] = ()
) -> Path:
    """tokenizer.json and tokenizer_config.json in `folder`; ids 0, 1, 2 are EOS, IM_START, IM_END, then come those of `special`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOS, IM_START, IM_END, *special],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "pad_token": EOS}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
