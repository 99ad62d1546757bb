"""What the engine is asked to be: every option in one frozen object, validated once, `None` meaning "choose for me".

`engine.resolve` turns the `None`s into numbers and says why. Knows nothing of models or machines, so the command line
and the front end can build one without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from ridgepoint.errors import ConfigError

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
KvDtype = Literal["float32", "bfloat16", "float16", "int8", "float8_e4m3fn"]
KV_DTYPES: tuple[KvDtype, ...] = ("float32", "bfloat16", "float16", "int8", "float8_e4m3fn")


@dataclass(frozen=True, kw_only=True)
class EchoOptions:
    """Run without a model: every sequence repeats its own prompt for ever. For tests and for timing everything else.

    `step_s` is slept in each step, so that a test can hold sequences in flight. `eos_id` never comes by itself; a
    prompt that contains it is stopped by it.
    """

    vocab_size: int
    max_context: int
    eos_id: int
    step_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """`None` is resolved at start from the model and the machine, and the choice is printed with its reason.

    model            folder or hub id of a checkpoint; only shown when `echo` is set
    dtype            of weights and activations
    kv_dtype         how KV is kept; None is `dtype`, int8 and float8_e4m3fn have a scale for each token and head
    device           `cpu` or `cuda`
    max_num_seqs     sequences that may run together
    max_step_tokens  tokens of one step, over all sequences; at least `max_num_seqs`
    mixed_prompt_tokens  of these, tokens of prompts while some sequence decodes and waits for the step; None chooses them by
                     the machine's ridge where `max_step_tokens` is left open too, and else bounds nothing
    step_budget_s    predicted seconds a step may take (the timetable's interval); None fills steps by tokens alone
    hardware         what the prediction is for: a catalogue id or a .toml file (`ridgepoint calibrate MODEL` writes this
                     machine's); None predicts nothing
    calibration      measured efficiencies the prediction uses, by name
    block_tokens     tokens per KV block
    kv_bytes         memory for KV; None takes a share of what is free once the weights are loaded
    num_blocks       the same in blocks; give one of the two or neither
    max_context      tokens of prompt and output together; None is the model's own, or what the KV memory holds
    max_waiting      requests that may queue; one more is refused with status 429
    prefix_cache     reuse KV blocks of equal prefixes
    weight_format    how the CPU kernels keep matrices: bf16, int8, int4-32, ...; None keeps what the checkpoint stores
    weight_cache     folder in which packed weights are kept between starts, or `off`; None is the user's cache folder
    threads          cores the engine process computes on; None is every core it may use
    tune_s           seconds a start on a GPU may spend on trying kernels that no table of tuned ones knows; 0 tries none
    """

    model: str
    dtype: Dtype | None = None
    kv_dtype: KvDtype | None = None
    device: str | None = None
    max_num_seqs: int = 64
    max_step_tokens: int | None = None
    mixed_prompt_tokens: int | None = None
    step_budget_s: float | None = None
    hardware: str | None = None
    calibration: str = "serving"
    block_tokens: int = 16
    kv_bytes: int | None = None
    num_blocks: int | None = None
    max_context: int | None = None
    max_waiting: int = 256
    prefix_cache: bool = True
    weight_format: str | None = None
    weight_cache: str | None = None
    threads: int | None = None
    tune_s: float = 15.0
    echo: EchoOptions | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.kv_dtype is not None and self.kv_dtype not in KV_DTYPES:
            raise ConfigError(f"kv_dtype {self.kv_dtype!r} is not one of {', '.join(KV_DTYPES)}")
        positive = (
            "max_num_seqs",
            "max_step_tokens",
            "mixed_prompt_tokens",
            "block_tokens",
            "kv_bytes",
            "num_blocks",
            "max_context",
            "threads",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not self.tune_s >= 0:
            raise ConfigError(f"tune_s must be at least 0, got {self.tune_s}")
        if self.max_waiting < 0:
            raise ConfigError(f"max_waiting must be at least 0, got {self.max_waiting}")
        if self.step_budget_s is not None and not self.step_budget_s > 0:
            raise ConfigError(f"step_budget_s must be above 0, got {self.step_budget_s}")
        if self.step_budget_s is not None and self.hardware is None and self.echo is None:
            raise ConfigError("step_budget_s counts predicted seconds, which need hardware", hint="name the hardware")
        if self.kv_bytes is not None and self.num_blocks is not None:
            raise ConfigError("kv_bytes and num_blocks both say how much KV to keep: give one")
        if self.max_step_tokens is not None and self.max_step_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_step_tokens {self.max_step_tokens} is below max_num_seqs {self.max_num_seqs}",
                hint="every running sequence needs room for one token in each step",
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EngineOptions:
        """From parsed TOML or JSON; an unknown key is an error that lists the known ones."""
        import msgspec  # a front end's need: an engine in this process runs without it

        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"unknown engine option {key!r}", hint="known: " + ", ".join(known))
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"engine options: {error}") from error
