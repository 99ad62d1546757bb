"""The byte-level BPE tokenizer for Python source. Decides how text becomes tokens; knows nothing of models.

Invariant: lossless (any bytes that are UTF-8 text come back exactly) and deterministic for equal texts and size.
A newline run *with the indentation after it* is one piece, so the shape of a block costs one token a line; a word takes
the one sign before it along (` name`, `.name`, `_name`, `(name`), as in the byte-level tokenizers of large code models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"

# alternatives, first match wins: line break(s) + indentation | word with one sign before it | digits by three |
# punctuation run with an optional space before it | spaces before the end of a run | spaces
_PIECES = r"(?:\r?\n[ \t]*)+|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|[^\S\r\n]+(?=[^\S\r\n])|\s+"

# A base model continues text. A chat is handed to it as one file: the messages in order, each as it was written.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if not loop.first and not loop.previtem.content.endswith('\\n') -%}{{ '\\n' }}{%- endif -%}"
    "{{ message.content }}"
    "{%- endfor -%}"
)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-pair merges learnt on `texts`; id 0 is the end of a file, then the 256 bytes, then the merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=32,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def end_id(tokenizer: Tokenizer) -> int:
    found = tokenizer.token_to_id(END_OF_TEXT)
    assert found is not None, "not a tokenizer of ours"
    return int(found)


def tokenizer_config(max_context: int) -> dict[str, object]:
    """`tokenizer_config.json`: what `transformers` and servers read beside `tokenizer.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_context,
        "chat_template": CHAT_TEMPLATE,
    }


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_context: int) -> None:
    """What serves: a prompt begins with the end of the file before it, as every file did in training. Without it a model
    that has seen windows from anywhere must guess how deep in a class `def` stands."""
    served = Tokenizer.from_str(tokenizer.to_str())
    served.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, end_id(tokenizer))],
    )
    served.save(str(folder / "tokenizer.json"))
    text = json.dumps(tokenizer_config(max_context), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n")
