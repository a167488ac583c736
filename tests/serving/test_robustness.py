"""10,000 malformed requests: no crash, an error or an answer each."""

import json
import random

import pytest

from tfllm.serving.c_api import GONE, ModelError, Process

TEXTS = ["", "\0", "好" * 50, "\ud83d", "\udcff", "x" * 5000, "a\u0301", "{", "NaN"]
ODD = [None, True, 0, -1, 1.5, 1e308, 2**70, float("nan"), [], {}, [[]], [None],
       {"b64": "/w=="}, {"b64": 3}, {"b64": "%"}]  # fmt: skip


def value(rng, depth=0):
    kind = rng.random()
    if kind < 0.4 or depth > 3:
        return rng.choice(TEXTS + ODD)
    if kind < 0.8:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(["text", "b64", "inputs"]): value(rng, depth + 1)}


def line(rng, names):
    request = {
        "signature": rng.choice([*names, *names, *names, value(rng)]),
        "inputs": {
            rng.choice(["text", "inputs", "text", "inputs", "other"]): rng.choice(
                [value(rng), [value(rng)], [rng.choice(TEXTS) for _ in range(3)]]
            )
        },
    }
    sent = json.dumps(request).encode()
    if rng.random() < 0.3:  # damaged on the way
        damaged = bytearray(sent)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        sent = bytes(damaged[: rng.randrange(1, len(damaged) + 1)])
    return sent.replace(b"\n", b" ")


@pytest.mark.parametrize("count", [10_000])  # 3 seconds
def test_malformed_requests(exported, count):
    rng = random.Random(count)
    good = {"text": ["hello"]}
    with Process(exported) as process:
        before = process.run("serving_default", good)["scores"]
        outcomes = {"answer": 0, "error": 0}
        for _ in range(count):
            try:
                assert "outputs" in process.request(line(rng, list(process.signatures)))
                outcomes["answer"] += 1
            except ModelError as error:
                assert error.code != GONE, error
                assert str(error).startswith(error.code) and "\n" not in str(error)
                outcomes["error"] += 1
        assert (process.run("serving_default", good)["scores"] == before).all()
    assert sum(outcomes.values()) == count and min(outcomes.values()) > count / 100
    print(outcomes)
