"""Reads a checkpoint's `config.json` strictly: every key is understood, known to be harmless, or refused by name.

A key nobody read may change the arithmetic (a new rope type, a gate, a scale), and a model with one wrong fact still
produces fluent text. So a family reads what it implements, and `finish` refuses what is left over. Unknown keys that
are null state an absence and pass.
"""

from __future__ import annotations

from typing import Any

from ridgepoint.catalog.plausible import check_config_number
from ridgepoint.errors import CheckpointError

# Written by transformers into any config; none reaches the arithmetic of generation.
HARMLESS = frozenset(
    [
        "_name_or_path",
        "architectures",
        "auto_map",
        "model_type",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "use_cache",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "initializer_range",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "attention_dropout",
        "hidden_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "is_encoder_decoder",
        "is_decoder",
        "add_cross_attention",
        "chunk_size_feed_forward",
        "pretraining_tp",
        "router_aux_loss_coef",
        "aux_loss_alpha",
        "seq_aux",
        "ep_size",
        "tokenizer_class",
        "finetuning_task",
        "prefix",
        "task_specific_params",
        "torchscript",
        "unsloth_fixed",
        "unsloth_version",
        "max_length",
        "min_length",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "use_return_dict",
    ]
)


class ConfigReader:
    """One `config.json` being read for `family`. Every getter marks its key as understood."""

    def __init__(self, config: dict[str, Any], family: str) -> None:
        self._config, self.family = config, family
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value; `default` when absent or null."""
        self._read.add(key)
        value = self._config.get(key)
        return default if value is None else value

    def has(self, key: str) -> bool:
        return self._config.get(key) is not None

    def integer(self, *keys: str, default: int | None = None) -> int:
        """A positive integer under the first of `keys` present (several names for one fact must agree)."""
        value = self._one(keys, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse(keys[0], value, "a positive integer")
        check_config_number(self.family, keys[0], value)
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """An integer that may be zero."""
        value = self._one((key,), default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.refuse(key, value, "an integer from 0 up")
        check_config_number(self.family, key, value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._one((key,), default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(key, value, "a number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._one((key,), default)
        if not isinstance(value, bool):
            raise self.refuse(key, value, "true or false")
        return value

    def choice(self, key: str, allowed: dict[str, Any] | tuple[str, ...], default: str | None = None) -> Any:
        """One of `allowed`; with a dict, the value it stands for."""
        value = self._one((key,), default)
        if not isinstance(value, str) or value not in allowed:
            raise self.refuse(key, value, ", ".join(allowed))
        return allowed[value] if isinstance(allowed, dict) else value

    def expect(self, key: str, value: Any, default: Any = None) -> None:
        """The key must hold `value` (absent means `default`, or `value` itself): anything else is not implemented."""
        got = self.get(key, value if default is None else default)
        if got != value or isinstance(got, bool) != isinstance(value, bool):
            raise self.refuse(key, got, repr(value))

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id, a list of ids, or none."""
        value = self.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise self.refuse(key, value, "a token id or a list of them")
        return tuple(ids)

    def ignore(self, *keys: str) -> None:
        """Keys this family writes that do not reach inference."""
        self._read.update(keys)

    def refuse(self, key: str, got: Any, allowed: str) -> CheckpointError:
        return CheckpointError(f"{self.family} config: {key} {got!r} is not supported; allowed: {allowed}")

    def finish(self) -> None:
        """Refuse every key that was neither read nor known to be harmless."""
        left = sorted(k for k, v in self._config.items() if v is not None and k not in self._read and k not in HARMLESS)
        if left:
            shown = ", ".join(f"{key}={self._config[key]!r:.80}" for key in left)
            raise CheckpointError(
                f"{self.family} config: keys not understood: {shown}",
                hint="an unknown key may change the arithmetic, so the checkpoint is not loaded; remove it if it does not",
            )

    def _one(self, keys: tuple[str, ...], default: Any) -> Any:
        self._read.update(keys)
        present = {key: self._config[key] for key in keys if self._config.get(key) is not None}
        if not present:
            if default is None:
                raise CheckpointError(f"{self.family} config: key {' or '.join(keys)} is missing")
            return default
        if len({repr(value) for value in present.values()}) > 1:
            raise CheckpointError(f"{self.family} config: {present} disagree: they name one fact")
        return next(iter(present.values()))
