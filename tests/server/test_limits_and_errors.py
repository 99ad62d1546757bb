"""What is refused, and how: limits, wrong bodies, keys, full queues. Every refusal is OpenAI's error object, never a 500."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import ToyEngine

from ridgepoint.errors import ConfigError, RequestError
from ridgepoint.server.body import parse
from ridgepoint.server.config import Limits, ServerConfig
from ridgepoint.server.schema import ChatRequest, CompletionRequest
from ridgepoint.server.service import Keyring, tenant_salt


def check_error(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"] and isinstance(error["message"], str)
    return error


BODIES = [
    (b"", None), (b"{", None), (b"nonsense", None), (b"[]", None), (b"null", None), (b'"text"', None),
    (b'{"prompt": "a"} trailing', None), (b"\xff\xfe", None), (b'{"prompt": "\xff"}', None),
    (b'{"prompt": "\\ud800"}', None), (b'{"prompt": "\\udc00\\ud800"}', None),
    (b'{"prompt": "a", "temperature": NaN}', None), (b'{"prompt": "a", "temperature": Infinity}', None),
    (b'{"prompt": "a", "temperature": 1e999}', "temperature"),
    (b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}", "max_tokens"),
    (b'{"prompt": "a", "seed": 99999999999999999999999}', "seed"),
    (b'{"prompt": ' + b"[" * 100_000, None), (b'{"metadata": ' + b'{"a":' * 100_000, None),
    (b'{"prompt": "a", "x": ' + b"[" * 100_000, None),
    (b"{}", "prompt"), (b'{"prompt": null}', "prompt"), (b'{"prompt": 5}', "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), BODIES, ids=[f"{index}" for index in range(len(BODIES))])
def test_bad_json_is_a_400(serve, body: bytes, param: str | None) -> None:
    async def run() -> None:
        async with serve() as served:
            response = await served.http.post(
                "/v1/completions", content=body, headers={"content-type": "application/json"}
            )
            error = check_error(response, 400)
            assert param is None or error["param"] == param

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"unknown": 1}, "unknown"),
        ({"tools": []}, "tools"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [-1]}, None),
        ({"prompt": [512]}, "prompt"),
        ({"prompt": [[5], [10**30]]}, "prompt[1][0]"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": "word " * 300}, "prompt"),
        ({"prompt": "word " * 100_000}, "prompt"),
        ({"prompt": [5] * 256}, "prompt"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"prompt": ["a", "b"], "n": 100}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ["a"] * 17 + ["b"]}, None),
        ({"stop": [str(index) for index in range(17)]}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [5]}, "stop[0]"),
        ({"stop_token_ids": [512]}, "stop_token_ids"),
        ({"logit_bias": {"512": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": -101}}, "logit_bias"),
        ({"logit_bias": {str(index): 1 for index in range(1025)}}, "logit_bias"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_fields_out_of_range_are_named(serve, body: dict, param: str | None) -> None:
    async def run() -> None:
        async with serve() as served:
            response = await served.complete(**body)
            if body == {"stop": ["a"] * 17 + ["b"]}:
                assert response.status_code == 200  # repeats do not count
                return
            error = check_error(response, 400)
            assert param is None or error["param"] == param, error

    asyncio.run(run())


@pytest.mark.parametrize(
    ("schema", "body", "hint"),
    [
        (CompletionRequest, b'{"prompt": "a", "response_format": {"type": "xml"}}', "'json_object', 'json_schema'"),
        (ChatRequest, b'{"messages": [{"role": "king", "content": ""}]}', "'developer', 'system', 'tool', 'user'"),
        (ChatRequest, b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "allowed: 'text'"),
        (
            ChatRequest,
            b'{"messages": [{"role": "user", "content": ""}], "tools": [{"type": "retrieval"}]}',
            "allowed: 'function'",
        ),
        (ChatRequest, b'{"tool_choice": "any"}', "'auto', 'none', 'required'"),
        (CompletionRequest, b'{"prompt": "a", "suffix": "b"}', "not inserted"),
    ],
)
def test_a_refused_choice_says_what_is_allowed(schema: type, body: bytes, hint: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse(body, schema)
    assert refused.value.hint is not None and hint in refused.value.hint


@pytest.mark.parametrize(
    ("body", "got"),
    [
        (b'{"prompt": "a", "max_tokens": -5}', "'max_tokens': expected int >= 0, got -5"),
        (b'{"prompt": [[1], [2, -7]]}', "'prompt[1][1]': expected int >= 0, got -7"),
        (b'{"prompt": "a", "temperature": 3.5}', "expected float <= 2.0, got 3.5"),
        (b'{"prompt": "a", "cache_salt": "' + b"s" * 300 + b'"}', "of length <= 256, got length 300"),
        (b'{"prompt": "a", "service_tier": "flex"}', "'flex'"),
        (b'{"prompt": "a", "seed": "x"}', "got str"),
        (b'{"prompt": "a", "max_tokens": -5, \xff', "'max_tokens': expected int >= 0"),  # what follows is no JSON
    ],
)
def test_a_refusal_says_what_came(body: bytes, got: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse(body, CompletionRequest)
    assert got in refused.value.message


@pytest.mark.parametrize(
    "body",
    [{"x" * 10_000: 1}, {"service_tier": "x" * 10_000}, {"max_tokens": 10**4299}, {"stop_token_ids": [10**4299]}],
)
def test_a_refusal_does_not_send_a_long_body_back(body: dict) -> None:
    with pytest.raises(RequestError) as refused:
        parse(json.dumps({"prompt": "a", **body}).encode(), CompletionRequest)
    assert len(refused.value.message) < 300 and len(refused.value.param or "") < 300


def test_a_prompt_that_is_too_long_carries_openais_code(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            for body in ({"prompt": "word " * 300}, {"max_tokens": 10**9}, {"prompt": "a" * 10**6}):
                assert check_error(await served.complete(**body), 400)["code"] == "context_length_exceeded"

    asyncio.run(run())


def test_paths_and_methods(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            check_error(await served.http.get("/v1/nothing"), 404)
            response = await served.http.get("/v1/completions")
            check_error(response, 405)
            assert response.headers["allow"] == "POST"
            assert check_error(await served.complete(model="other"), 404)["code"] == "model_not_found"
            assert check_error(await served.http.get("/v1/models/other"), 404)["code"] == "model_not_found"
            form = await served.http.post(
                "/v1/completions", content=b"prompt=a", headers={"content-type": "text/plain"}
            )
            check_error(form, 415)
            zipped = {"content-type": "application/json", "content-encoding": "gzip"}
            assert (
                "gzip"
                in check_error(await served.http.post("/tokenize", content=b"{}", headers=zipped), 415)["message"]
            )
            assert "neither" in check_error(await served.http.post("/tokenize", json={}), 400)["message"]

    asyncio.run(run())


def test_large_bodies_are_cut_off_announced_or_not(serve) -> None:
    async def chunks():
        for _ in range(64):
            yield b" " * 1024

    async def run() -> None:
        async with serve(limits=Limits(max_body_bytes=16 * 1024)) as served:
            headers = {"content-type": "application/json"}
            announced = await served.http.post("/v1/completions", content=b" " * 65536, headers=headers)
            check_error(announced, 413)
            chunked = await served.http.post("/v1/completions", content=chunks(), headers=headers)
            assert "content-length" not in chunked.request.headers
            check_error(chunked, 413)
            assert chunked.headers["connection"] == "close"

    asyncio.run(run())


def test_a_full_queue_is_429_with_an_estimate(serve) -> None:
    async def run() -> None:
        engine = ToyEngine(capacity=2)
        async with serve(engine) as served:
            for _ in range(3):
                assert (await served.complete()).status_code == 200
            engine.gate.clear()
            held = [asyncio.create_task(served.complete()) for _ in range(2)]
            while engine.in_flight < 2:
                await asyncio.sleep(0)
            response = await served.complete()
            assert check_error(response, 429)["type"] == "rate_limit_error"
            assert int(response.headers["retry-after"]) >= 1
            assert engine.in_flight == 2  # none of the refused request's sequences got in
            engine.gate.set()
            assert [one.status_code for one in await asyncio.gather(*held)] == [200, 200]
            check_error(await served.complete(n=3), 429)

    asyncio.run(run())


def test_loading_draining_and_dead_engines_are_503(serve) -> None:
    async def run() -> None:
        async with serve() as served:

            async def health() -> tuple[int, str]:
                response = await served.http.get("/health")
                return response.status_code, response.json()["status"]

            assert await health() == (200, "ok")
            served.service.loaded = False
            assert await health() == (503, "loading")
            assert check_error(await served.complete(), 503)["code"] == "loading"
            served.service.loaded, served.engine.alive = True, False
            served.engine.failure = "the engine process was killed by SIGKILL"
            assert await health() == (503, "failed")
            assert "SIGKILL" in (await served.http.get("/health")).json()["detail"]
            refused = check_error(await served.chat(), 503)
            assert refused["code"] == "engine_unavailable" and "SIGKILL" in refused["message"]
            served.service.draining = True
            assert await health() == (503, "draining")
            assert check_error(await served.complete(), 503)["code"] == "shutting_down"
            assert (await served.http.get("/metrics")).status_code == 200

    asyncio.run(run())


def test_a_bug_is_a_500_that_tells_nothing(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with serve() as served:

            def broken(*_: object) -> None:
                raise ZeroDivisionError("secret")

            monkeypatch.setattr(served.engine, "submit", broken)
            response = await served.complete()
            assert "secret" not in check_error(response, 500)["message"]
            assert "ZeroDivisionError" in served.log.getvalue() and response.headers["x-request-id"]

    asyncio.run(run())


# ---------------------------------------------------------------- keys

KEY, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"


def test_keys(serve) -> None:
    async def run() -> None:
        async with serve(api_keys=(KEY, OTHER)) as served:
            for headers in ({}, {"authorization": "Bearer wrong-key"}, {"authorization": f"Basic {KEY}"},
                            {"authorization": "Bearer "}, {"authorization": "Bearer \xff".encode("latin-1")}):  # fmt: skip
                for path in ("/v1/models", "/metrics", "/nothing", "/openapi.json"):
                    response = await served.http.get(path, headers=headers)
                    assert check_error(response, 401)["code"] == "invalid_api_key"
                    assert response.headers["www-authenticate"] == "Bearer"
            assert (await served.http.get("/health")).status_code == 200
            for key in (KEY, OTHER):
                served.http.headers["authorization"] = f"Bearer {key}"
                assert (await served.complete(max_tokens=1)).status_code == 200
            salts = [submit.salt for submit in served.engine.submitted]
            assert len(set(salts)) == 2 and all(len(salt) == 16 for salt in salts)
            assert KEY not in served.log.getvalue()
            assert KEY not in repr(served.service.config)

    asyncio.run(run())


def test_salts_separate_keys_and_cache_salts() -> None:
    assert tenant_salt(None, None) == b""
    salts = [tenant_salt(key, salt) for key in (None, KEY, OTHER) for salt in (None, "a", "b")]
    assert len(set(salts)) == len(salts)
    assert tenant_salt(KEY, "a") == tenant_salt(KEY, "a")


def test_the_keyring_knows_its_keys() -> None:
    ring = Keyring([KEY, OTHER])
    assert ring.accepts(KEY) and ring.accepts(OTHER)
    assert not any(ring.accepts(key) for key in ("", KEY[:-1], KEY + "0", "\udcff"))
    assert not Keyring([])


@pytest.mark.parametrize("key", ["short", "with space 123", "ünïcödé-key", "new\nline-key"])
def test_weak_or_odd_keys_are_refused_at_start(key: str) -> None:
    with pytest.raises(ConfigError):
        ServerConfig(model_name="m", api_keys=(key,))


# ---------------------------------------------------------------- request ids and log lines


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-123", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ('x"y', False), ("", False)],
)
def test_request_ids(serve, sent: str, kept: bool) -> None:
    async def run() -> None:
        async with serve() as served:
            response = await served.http.get("/v1/models", headers={"x-request-id": sent})
            given_ = response.headers["x-request-id"]
            assert (given_ == sent) is kept
            assert f"id={given_}" in served.log.getvalue()

    asyncio.run(run())


def test_a_log_line_cannot_be_forged(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            await served.http.get("/a%0Alevel=error%20event=forged")
            assert len(served.log.getvalue().splitlines()) == 1

    asyncio.run(run())


# ---------------------------------------------------------------- the parser never fails otherwise

JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted({*CompletionRequest.__struct_fields__, *ChatRequest.__struct_fields__, "other"})


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSONISH, max_size=4), st.sampled_from([CompletionRequest, ChatRequest]))
def test_any_json_is_read_or_refused(fields: dict, schema: type) -> None:
    body = json.dumps({"prompt": "a", **fields} if schema is CompletionRequest else fields).encode()
    try:
        parse(body, schema)
    except RequestError as error:
        assert error.status == 400 and str(error)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        parse(body, CompletionRequest)
