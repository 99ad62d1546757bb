"""What an accelerator *is*: peaks, capacities, links, watts and rent, each a fact with its source and date.

Peaks only (`spec_`): dense FLOP/s, one-way bytes/s, one package as sold. What software reaches of them is calibration and
is never written here. A field that is None is unknown; `Accelerator.need` turns an unknown fact that a plan asks for into
an error that names it. Custom hardware is a TOML file of the same fields (bare numbers, or [number, "source"]).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from ridgepoint.catalog.nearest import nearest
from ridgepoint.errors import CatalogError

FLOP_TYPES = ("fp32", "fp16", "bf16", "fp8", "int8", "fp4")

# Widest first: arithmetic the chip cannot do in a narrow type is done in the next wider one it has.
_WIDER = {
    "fp4": ("fp8", "bf16", "fp16"),
    "fp8": ("bf16", "fp16"),
    "int8": ("bf16", "fp16"),
    "bf16": ("fp16", "fp32"),
    "fp16": ("bf16", "fp32"),
}


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One chip (package) and the links it sits on. `spec_scaleup_bytes_per_s` is per chip and one-way, as is scale-out.

    `scaleup_domain_chips` counts the chips that reach each other at scale-up bandwidth: a node, a rack or a pod.
    `unit_chips` counts those bought or rented together: a card, a board, a rack, a slice.
    `measure_engine` holds constants of the step law fitted to steps measured on this very machine, by the names `cost` gives them.
    """

    id: str
    name: str
    vendor: str
    kind: str
    launch_year: int | None = None
    spec_memory_bytes: float | None = None
    spec_memory_bytes_per_s: float | None = None
    spec_flops_per_s: dict[str, float] = field(default_factory=dict)
    spec_sram_bytes: float | None = None
    spec_sram_bytes_per_s: float | None = None
    spec_cache_bytes: float | None = None
    spec_tdp_w: float | None = None
    spec_allin_w: float | None = None
    scaleup_domain_chips: int | None = None
    unit_chips: int | None = None
    spec_scaleup_bytes_per_s: float | None = None
    spec_scaleout_bytes_per_s: float | None = None
    spec_hostlink_bytes_per_s: float | None = None
    usd_per_hour_low: float | None = None
    usd_per_hour_high: float | None = None
    measure_flops_per_s: dict[str, float] = field(default_factory=dict)
    measure_memory_bytes_per_s: float | None = None
    measure_step_overhead_s: float | None = None
    measure_memory_bytes: float | None = None
    measure_engine: dict[str, float] = field(default_factory=dict)
    memory_type: str = ""
    confidence: str = ""
    notes: str = ""
    sources: dict[str, str] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.id, self.name))

    def need(self, name: str, purpose: str) -> float:
        """The fact `name`, or an error saying which plan needs a number nobody has published."""
        value = getattr(self, name)
        if value is None:
            raise CatalogError(
                f"{self.id}: {name} is unknown, and {purpose} needs it",
                hint="state it in a hardware TOML file, or choose hardware whose catalogue entry has it",
            )
        return float(value)

    def compute_type(self, wanted: str) -> str:
        """The number format the matrix units work in when asked for `wanted`: itself, or the next wider one they have."""
        if self.spec_flops_per_s.get(wanted):
            return wanted
        for wider in _WIDER.get(wanted, ()):
            if self.spec_flops_per_s.get(wider):
                return wider
        known = ", ".join(sorted(self.spec_flops_per_s)) or "none"
        raise CatalogError(
            f"{self.id}: dense {wanted} FLOP/s is unknown (known: {known})",
            hint="state flops_per_s_" + wanted + " in a hardware TOML file",
        )

    def flops_per_s(self, wanted: str) -> float:
        return self.spec_flops_per_s[self.compute_type(wanted)]

    @property
    def usd_per_hour(self) -> float | None:
        """Geometric middle of the known rent; the interval's ends are `usd_per_hour_low` and `_high`."""
        if self.usd_per_hour_low is None or self.usd_per_hour_high is None:
            return self.usd_per_hour_high if self.usd_per_hour_low is None else self.usd_per_hour_low
        return float((self.usd_per_hour_low * self.usd_per_hour_high) ** 0.5)

    def rent_range(self, purpose: str) -> tuple[float, float]:
        """(low, high) USD per hour; where one end is unknown the other stands for both, where both are, it is an error."""
        known = self.need("usd_per_hour", purpose)
        low, high = self.usd_per_hour_low, self.usd_per_hour_high
        return (known if low is None else low), (known if high is None else high)

    def with_rent(self, usd_per_hour: float) -> Accelerator:
        if not usd_per_hour > 0:
            raise CatalogError(f"{self.id}: rent must be positive, got {usd_per_hour:g} USD/h")
        return replace(self, usd_per_hour_low=usd_per_hour, usd_per_hour_high=usd_per_hour)


_RENAMED = {
    "memory_bytes", "memory_bytes_per_s", "sram_bytes", "sram_bytes_per_s", "cache_bytes", "tdp_w", "allin_w",
    "scaleup_bytes_per_s", "scaleout_bytes_per_s", "hostlink_bytes_per_s",
}  # fmt: skip
_PLAIN = {"launch_year", "scaleup_domain_chips", "unit_chips", "usd_per_hour_low", "usd_per_hour_high"}
_MEASURED = {"measure_memory_bytes_per_s", "measure_step_overhead_s", "measure_memory_bytes"}
_TEXT = {"name", "vendor", "kind", "memory_type", "confidence", "notes"}
_WHOLE = {"launch_year", "scaleup_domain_chips", "unit_chips"}
_MAY_BE_ZERO = {"usd_per_hour_low", "usd_per_hour_high", "measure_step_overhead_s"}


def _known_keys() -> list[str]:
    flops = [f"flops_per_s_{kind}" for kind in FLOP_TYPES] + [f"achieved_flops_per_s_{kind}" for kind in FLOP_TYPES]
    return sorted(_RENAMED | _PLAIN | _MEASURED | _TEXT | set(flops))


def accelerator_from_table(ident: str, table: dict[str, Any], sources: dict[str, str] | None = None) -> Accelerator:
    """One `[id]` table of a hardware TOML file, validated; numbers may carry their source as `[number, "source"]`."""
    named = sources or {}
    values: dict[str, Any] = {"id": ident, "name": ident, "vendor": "", "kind": "custom"}
    flops: dict[str, float] = {}
    achieved: dict[str, float] = {}
    origin: dict[str, str] = {}
    known = set(_known_keys())
    for key, raw in table.items():
        if key == "engine":
            values["measure_engine"], engine_origin = _engine_table(ident, raw)
            origin |= {f"engine.{name}": named.get(source, source) for name, source in engine_origin.items()}
            continue
        if key not in known:
            raise CatalogError(
                f"{ident}: unknown hardware key {key!r}", hint="allowed: " + ", ".join([*_known_keys(), "engine"])
            )
        if key in _TEXT:
            if not isinstance(raw, str):
                raise CatalogError(f"{ident}: {key} must be text, got {raw!r}")
            values[key] = raw
            continue
        number, source = _number(ident, key, raw)
        if number < 0 or (number == 0 and key not in _MAY_BE_ZERO):
            raise CatalogError(f"{ident}: {key} must be positive, got {number:g}", hint="leave out what is unknown")
        origin[key] = named.get(source, source)
        if key.startswith("flops_per_s_"):
            flops[key.removeprefix("flops_per_s_")] = float(number)
        elif key.startswith("achieved_flops_per_s_"):
            achieved[key.removeprefix("achieved_flops_per_s_")] = float(number)
        elif key in _MEASURED:
            values[key] = float(number)
        elif key in _PLAIN:
            values[key] = int(number) if key in _WHOLE else float(number)
        else:
            values["spec_" + key] = float(number)
    chip = Accelerator(**values, spec_flops_per_s=flops, measure_flops_per_s=achieved, sources=origin)
    _gate(chip)
    return chip


def _number(ident: str, key: str, raw: Any) -> tuple[float, str]:
    number, source = (raw[0], str(raw[1])) if isinstance(raw, list) and len(raw) == 2 else (raw, "")
    if isinstance(number, bool) or not isinstance(number, int | float) or number != number:
        raise CatalogError(f'{ident}: {key} must be a number or [number, "source"], got {raw!r}')
    return number, source


def _engine_table(ident: str, raw: Any) -> tuple[dict[str, float], dict[str, str]]:
    if not isinstance(raw, dict):
        raise CatalogError(f"{ident}: engine must be a table of constants, got {raw!r}")
    pairs = {key: _number(ident, f"engine.{key}", value) for key, value in raw.items()}
    return {key: float(number) for key, (number, _) in pairs.items()}, {
        key: source for key, (_, source) in pairs.items()
    }


def _gate(chip: Accelerator) -> None:
    """The physics gate of a datum: nothing measured may exceed the peak it is measured against, by name."""
    for kind, measured in chip.measure_flops_per_s.items():
        peak = chip.spec_flops_per_s.get(kind)
        if peak is not None and measured > peak:
            raise CatalogError(
                f"{chip.id}: measured {kind} {measured:.3g} FLOP/s is above the peak {peak:.3g}",
                hint="is the peak a base-clock figure?",
            )
    measured_bw, peak_bw = chip.measure_memory_bytes_per_s, chip.spec_memory_bytes_per_s
    if measured_bw is not None and peak_bw is not None and measured_bw > peak_bw:
        raise CatalogError(
            f"{chip.id}: measured memory bandwidth {measured_bw:.3g} B/s is above the peak {peak_bw:.3g}"
        )
    low, high = chip.usd_per_hour_low, chip.usd_per_hour_high
    if low is not None and high is not None and low > high:
        raise CatalogError(f"{chip.id}: usd_per_hour_low {low:g} is above usd_per_hour_high {high:g}")


def _read(text: str, where: str) -> dict[str, Accelerator]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{where}: not valid TOML: {error}") from None
    sources = {key: f"{row['text']} ({row['date']})" for key, row in data.pop("sources", {}).items()}
    chips: dict[str, Accelerator] = {}
    for ident, table in data.items():
        if not isinstance(table, dict):
            raise CatalogError(f"{where}: {ident!r} is outside a hardware table", hint="start the file with [my-chip]")
        chips[ident] = accelerator_from_table(ident, table, sources)
    return chips


@lru_cache(maxsize=1)
def accelerators() -> dict[str, Accelerator]:
    """Every accelerator of the shipped catalogue by id."""
    return _read(
        resources.files("ridgepoint.catalog").joinpath("data/accelerators.toml").read_text(), "accelerators.toml"
    )


def accelerator(name: str) -> Accelerator:
    """By catalogue id, by alias (`h100`, `gb200`), or from a TOML file with one hardware table."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise CatalogError(f"no hardware file {name}")
        chips = _read(path.read_text(), name)
        if len(chips) != 1:
            raise CatalogError(f"{name}: expected one hardware table, got {len(chips)}", hint="one [name] table a file")
        return next(iter(chips.values()))
    known = accelerators()
    ident = name.lower().replace("_", "-")
    ident = ALIASES.get(ident, ident)
    if ident in known:
        return known[ident]
    raise CatalogError(
        f"unknown accelerator {name!r}", hint=f"try {', '.join(nearest(name, {**known, **ALIASES}))}, or a .toml file"
    )


ALIASES = {
    "v100": "v100-sxm2-32", "a100": "a100-sxm-80", "h100": "h100-sxm", "h800": "h800-sxm", "h200": "h200-sxm",
    "gh200": "gh200-141", "b200": "b200-sxm", "b300": "b300-sxm", "gb200": "gb200-nvl72", "gb300": "gb300-nvl72",
    "a100-sxm": "a100-sxm-80", "a100-pcie": "a100-pcie-80", "v5e": "tpu-v5e", "v5p": "tpu-v5p", "v6e": "tpu-v6e",
}  # fmt: skip

assert {item.name for item in fields(Accelerator)} >= {"spec_" + key for key in _RENAMED} | _PLAIN | _MEASURED | _TEXT
