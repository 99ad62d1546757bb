"""The live page: self-contained, allowed to do nothing but read its own server, and fed by metrics that exist."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re

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
            page, metrics = (await served.http.get("/")).text, (await served.http.get("/metrics")).text
            names = set(re.findall(r'"((?:num|kv|step|prefix|request|generation|computed|time|inter)_[a-z_]+)"', page))
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
