"""The live page: self-contained, allowed to do nothing but read its own server, and fed by metrics that exist."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re

from ridgepoint.engine.protocol import RATIO_EDGES, StepReport, StepTotals

PREDICTED = StepReport(
    step=3, num_tokens=5, num_seqs=2, running=1, waiting=0, used_blocks=1, step_s=0.02, predicted_s=0.019,
    followed_s=0.021, machine_speed={"compute": 0.98, "memory": 0.6, "overhead": 1.0}, preemptions_total=0, prefix_hit_tokens_total=0, prefix_query_tokens_total=0, computed_tokens_total=9,
    totals=StepTotals(
        steps=3, measured_s=0.06, predicted_s=0.057, followed_s=0.061, floor_s=0.04, roof_s={"weights": 0.057},
        ratio_counts=[1, 2] + [0] * (len(RATIO_EDGES) - 1), followed_counts=[0] * 5 + [3] + [0] * (len(RATIO_EDGES) - 5),
        joules=1.5, usd=1e-6,
    ),
)  # fmt: skip
KEY = "sk-0123456789abcdef"


def test_the_page_needs_no_key_and_loads_nothing_from_elsewhere(serve) -> None:
    async def run() -> None:
        async with serve(api_keys=(KEY,)) as served:
            response = await served.http.get("/")
            assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            for tag in ("script", "style"):
                body = re.search(f"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
                assert body is not None
                digest = base64.b64encode(hashlib.sha256(body.group(1).encode()).digest()).decode()
                assert f"{tag}-src 'sha256-{digest}'" in policy
            assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", response.text)
            assert "toy" not in response.text  # the model's name is behind the key

    asyncio.run(run())


def test_every_metric_the_page_reads_is_served(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            await served.complete()
            bare = (await served.http.get("/metrics")).text
            assert "predicted" not in bare  # no prediction, no figure
            served.engine.stats = PREDICTED
            page, metrics = (await served.http.get("/")).text, (await served.http.get("/metrics")).text
            names = set(
                re.findall(
                    r'"((?:num|kv|step|machine|predicted|prefix|request|generation|computed|time|inter)_[a-z_]+)"', page
                )
            )
            assert len(names) > 10
            for name in names:
                assert re.search(rf"^ridgepoint:{name}(?:_bucket)?(?:{{| )", metrics, re.MULTILINE), name

    asyncio.run(run())


def test_tokens_are_counted_while_they_come(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            async with served.http.stream(
                "POST", "/v1/completions", json={"prompt": "Hello", "stream": True}
            ) as response:
                await response.aread()
            text = (await served.http.get("/metrics")).text
            for line in (
                'generation_tokens_total{model_name="toy"} 16.0', 'prompt_tokens_total{model_name="toy"} 4.0',
                'inter_token_latency_seconds_count{model_name="toy"} 15.0',
                'time_to_first_token_seconds_count{model_name="toy"} 1.0',
                'request_success_total{finished_reason="length",model_name="toy"} 1.0',
            ):  # fmt: skip
                assert f"ridgepoint:{line}" in text, line

    asyncio.run(run())


def test_predictions_are_counters_beside_what_was_measured(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            served.engine.stats = PREDICTED
            text = (await served.http.get("/metrics")).text
            for line in (
                'step_predicted_seconds{model_name="toy"} 0.019', 'predicted_steps_total{model_name="toy"} 3.0',
                'predicted_steps_floor_seconds_total{model_name="toy"} 0.04', 'predicted_steps_usd_total{model_name="toy"} 1e-06',
                'predicted_steps_roof_seconds_total{model_name="toy",roof="weights"} 0.057',
                'step_prediction_ratio_bucket{le="0.8",model_name="toy"} 3.0',
                'step_followed_seconds{model_name="toy"} 0.021', 'predicted_steps_followed_seconds_total{model_name="toy"} 0.061',
                'step_followed_ratio_bucket{le="1.0",model_name="toy"} 0.0', 'step_followed_ratio_bucket{le="1.05",model_name="toy"} 3.0',
                'machine_speed_ratio{model_name="toy",part="memory"} 0.6',
            ):  # fmt: skip
                assert f"ridgepoint:{line}" in text, line

    asyncio.run(run())
