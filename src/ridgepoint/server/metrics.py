"""Prometheus metrics under `ridgepoint:`, with the names that dashboards of this field already know.

Requests are observed here as their tokens come and when they end; engine gauges and totals are read from its latest step report when
scraped, so they cost a step nothing. One registry per server: nothing global.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ridgepoint.engine.protocol import RATIO_EDGES, StepReport, StepTotals

if TYPE_CHECKING:
    from ridgepoint.server.generate import Engine, Generation

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_TOKENS = tuple(float(2**power) for power in range(18))
_RATE_WINDOW = 64  # finished sequences that the service rate is estimated from


class Metrics:
    """Everything `/metrics` shows, and the service rate that `Retry-After` is computed from."""

    def __init__(self, model_name: str) -> None:
        self._model = model_name
        disable_created_metrics()  # a second series per counter that no dashboard reads
        self._registry = CollectorRegistry()
        self._finish_times_s: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.", _SECONDS)
        self._itl = self._histogram("inter_token_latency_seconds", "Time between two tokens.", _TOKEN_SECONDS)
        self._tpot = self._histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first.", _TOKEN_SECONDS
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to last token.", _SECONDS)
        self._queue = self._histogram("request_queue_time_seconds", "Time waiting for the first step.", _SECONDS)
        self._prompt_size = self._histogram("request_prompt_tokens", "Prompt tokens per sequence.", _TOKENS)
        self._output_size = self._histogram("request_generation_tokens", "Output tokens per sequence.", _TOKENS)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of sequences that got a first token.")
        self._output_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._success = self._counter("request_success", "Sequences ended, by reason.", "finished_reason")
        self._http = self._counter("http_requests", "HTTP responses.", "path", "status")
        for reason in ("stop", "length", "abort"):
            self._success.labels(self._model, reason)

    def watch(self, engine: Engine) -> None:
        """Show the engine's own state in every scrape."""
        self._registry.register(_EngineState(engine, self._model))

    def tokens(self, generation: Generation, count: int, gap_s: float | None) -> None:
        """Account tokens as they come; the first output also tells what the prompt cost."""
        timing = generation.timing
        if gap_s is None:
            num_prompt = len(generation.wanted.prompt_ids)
            self._prompt_size.observe(num_prompt)
            self._prompt_tokens.labels(self._model).inc(num_prompt)
            if timing.first_s is not None:
                self._ttft.observe(timing.first_s - timing.arrived_s)
            if timing.queue_s is not None:
                self._queue.observe(timing.queue_s)
        else:
            for _ in range(count):
                self._itl.observe(gap_s)
        self._output_tokens.labels(self._model).inc(count)

    def ended(self, generation: Generation) -> None:
        """Account one sequence that has ended, for whatever reason."""
        timing = generation.timing
        self._success.labels(self._model, generation.finish_reason or "abort").inc()
        self._finish_times_s.append(time.monotonic())
        if timing.first_s is None or timing.last_s is None:
            return
        self._e2e.observe(timing.last_s - timing.arrived_s)
        self._output_size.observe(generation.num_tokens)
        if generation.num_tokens > 1:
            self._tpot.observe((timing.last_s - timing.first_s) / (generation.num_tokens - 1))

    def observe_http(self, path: str, status: int) -> None:
        self._http.labels(self._model, path, str(status)).inc()

    def retry_after_s(self, num_ahead: int) -> int:
        """Whole seconds until `num_ahead` sequences have likely ended, at the rate the last ones ended; 1 if unknown."""
        times = self._finish_times_s
        span_s = time.monotonic() - times[0] if len(times) > 1 else 0.0
        if span_s <= 0:
            return 1
        return max(1, min(3600, math.ceil(num_ahead * span_s / (len(times) - 1))))

    def scrape(self) -> bytes:
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        metric = Histogram(f"ridgepoint:{name}", text, ["model_name"], buckets=list(buckets), registry=self._registry)
        child: Histogram = metric.labels(self._model)
        return child

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"ridgepoint:{name}", text, ["model_name", *labels], registry=self._registry)


_IDLE = StepReport(
    step=0, num_tokens=0, num_seqs=0, running=0, waiting=0, used_blocks=0, step_s=0.0, predicted_s=None, followed_s=None,
    machine_speed=None, totals=None, preemptions_total=0, prefix_hit_tokens_total=0, prefix_query_tokens_total=0,
    computed_tokens_total=0,
)  # fmt: skip
Family = type[GaugeMetricFamily] | type[CounterMetricFamily]


class _EngineState:
    """A collector that translates the engine's latest `StepReport`; shows zeros before the first. What the engine does not know
    (a prediction, energy, dollars) has no series at all, rather than a zero."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model

    def collect(self) -> Iterable[Metric]:
        engine, stats = self._engine, self._engine.stats or _IDLE
        ready = engine.ready if engine.alive else None
        blocks = ready.num_blocks if ready else 0
        yield from self._each(
            GaugeMetricFamily,
            ("num_requests_running", "Sequences that are being computed.", stats.running),
            ("num_requests_waiting", "Sequences that wait for a first step.", stats.waiting),
            ("num_requests_in_flight", "Sequences submitted and not ended.", engine.in_flight),
            (
                "kv_cache_usage_perc",
                "Share of KV blocks held by sequences; 1 is full.",
                stats.used_blocks / blocks if blocks else 0,
            ),
            ("kv_blocks_used", "KV blocks held by sequences.", stats.used_blocks),
            ("kv_blocks_total", "KV blocks there are.", blocks),
            ("step_seconds", "Measured time of the latest reported step.", stats.step_s),
            ("step_tokens", "Tokens of that step.", stats.num_tokens),
            (
                "step_predicted_seconds",
                "Time of the latest reported step by the calibrated constants.",
                stats.predicted_s,
            ),
            ("step_followed_seconds", "Time predicted for it by the machine's speed at that step.", stats.followed_s),
            ("joules_per_step", "Measured energy per step since the report before.", stats.joules_per_step),
            ("engine_up", "1 while the engine takes work.", int(engine.alive)),
        )
        yield from self._each(
            CounterMetricFamily,
            ("prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_query_tokens_total),
            ("prefix_cache_hits", "Prompt tokens found.", stats.prefix_hit_tokens_total),
            ("num_preemptions", "Sequences set back for memory.", stats.preemptions_total),
            ("computed_tokens", "Tokens computed in steps.", stats.computed_tokens_total),
            ("engine_steps", "Steps run.", stats.step),
            ("structured_masks", "Draws that a grammar constrained.", stats.masks_total),
            ("structured_mask_seconds", "Time that steps spent on what grammars allow.", stats.masks_s_total),
            (
                "device_joules",
                "Energy the device used while there was work, by its own counter.",
                stats.joules_total,
            ),
        )
        if stats.machine_speed is not None:
            text = "How fast a part of a step goes now, over the speed that was calibrated."
            yield self._by(GaugeMetricFamily, "machine_speed_ratio", text, "part", stats.machine_speed)
        if stats.totals is not None:
            yield from self._of_predictions(stats.totals)
        if ready:
            text = "What the start took, by part."
            yield self._by(GaugeMetricFamily, "startup_seconds", text, "part", ready.startup_s)
            if ready.configurations:  # absent where no kernel has a choice
                text = "Choices for kernels at start."
                yield self._by(GaugeMetricFamily, "kernel_configurations", text, "state", ready.configurations)

    def _of_predictions(self, totals: StepTotals) -> Iterable[Metric]:
        yield from self._each(
            CounterMetricFamily,
            ("predicted_steps", "Steps that were predicted.", totals.steps),
            ("predicted_steps_seconds", "Their time by the calibrated constants.", totals.predicted_s),
            ("predicted_steps_followed_seconds", "Their time as predicted step by step.", totals.followed_s),
            ("predicted_steps_measured_seconds", "Measured time of those steps.", totals.measured_s),
            (
                "predicted_steps_floor_seconds",
                "Least time physics allows those steps on this hardware.",
                totals.floor_s,
            ),
            ("predicted_steps_joules", "Estimated energy of those steps.", totals.joules),
            ("predicted_steps_usd", "Rent of the hardware while those steps ran.", totals.usd),
        )
        text = "Calibrated time by what sets it."
        yield self._by(CounterMetricFamily, "predicted_steps_roof_seconds", text, "roof", totals.roof_s)
        edges = [*map(str, RATIO_EDGES), "+Inf"]
        for name, text, counts in (
            ("step_prediction_ratio", "Calibrated over measured time of a step.", totals.ratio_counts),
            ("step_followed_ratio", "Followed over measured time of a step.", totals.followed_counts),
        ):
            ratios = HistogramMetricFamily(f"ridgepoint:{name}", text, labels=["model_name"])
            ratios.add_metric([self._model], list(zip(edges, accumulate(counts), strict=True)), sum_value=None)
            yield ratios

    def _each(self, kind: Family, *rows: tuple[str, str, float | None]) -> Iterable[Metric]:
        """One family per row of name, text and value, but for values that are unknown."""
        for name, text, value in rows:
            if value is not None:
                family = kind(f"ridgepoint:{name}", text, labels=["model_name"])
                family.add_metric([self._model], value)
                yield family

    def _by(self, kind: Family, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = kind(f"ridgepoint:{name}", text, labels=["model_name", label])
        for key, value in values.items():
            family.add_metric([self._model, key], value)
        return family
