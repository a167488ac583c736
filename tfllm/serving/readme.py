"""The page beside an export's versions: what it is, how it is served and asked."""

import json
import shlex
from collections.abc import Mapping

import tensorflow as tf

from tfllm.serving import c_api

IMAGE = "tensorflow/serving:2.20.0"
CLASSIFY, REGRESS = {"classes", "scores"}, {"outputs"}  # outputs of these verbs
_PAGE = """\
# {name}

Version {version}, written by tfllm {tfllm}: text in, answer out. Weights \
{weight_bytes:,} bytes, graph {graph_bytes:,} bytes.

{facts}

## Serve it

```sh
# in the folder that holds this one
docker run --rm -p 8500:8500 -p 8501:8501 \\
  -v "$PWD/{name}:/models/{name}:ro" -e MODEL_NAME={name} {image}
```

Many small requests are computed together with `--enable_batching \
--enable_per_model_batching_parameters` at the end of that line \
(`batching_params.pbtxt` in the version's folder says how).

{notes}

## Ask it

```sh
curl {url}
```
"""
_REQUEST = """
`{signature}`: {taken} → {given}

```sh
curl -d {body} {url}:{verb}
```

answers

```json
{answer}
```
"""


def readme(record: dict, functions: Mapping, figures: dict, notes, image) -> str:
    """The page in Markdown.

    Args:
        record: What `assets.extra/tfllm.json` holds.
        functions: signature → concrete function.
        figures: Those of the check.
        notes: Warnings of the check.
        image: Docker image of TensorFlow Serving.
    """
    about = {"task": record["task"], "labels": record["labels"], **record["about"]}
    url = f"http://localhost:8501/v1/models/{record['name']}"
    page = _PAGE.format(
        **(record | figures),
        facts="\n".join(f"- {k}: {_json(v)}" for k, v in about.items() if v),
        image=image,
        notes="\n".join(f"Note: {note}" for note in notes),
        url=url,
    )
    for signature, function in functions.items():
        verb, body, answer = rest_request(signature, record["samples"][signature])
        specs = function.structured_input_signature[1].values()
        page += _REQUEST.format(
            signature=signature,
            taken=", ".join(f"`{s.name}` {s.dtype.name}" for s in specs),
            given=", ".join(f"`{name}`" for name in function.structured_outputs),
            body=shlex.quote(_json(body)),
            url=url,
            verb=verb,
            answer=_json(answer),
        )
    return page


def rest_request(signature: str, sample: Mapping) -> tuple[str, dict, dict]:
    """How the first sample is asked over REST.

    Returns:
        The verb after `/v1/models/NAME:`, the request's body, the answer's body.
    """
    body = {} if signature == c_api.DEFAULT_SIGNATURE else {"signature_name": signature}
    first = {key: values[0] for key, values in sample["inputs"].items()}
    answer = {key: _rounded(values[0]) for key, values in sample["outputs"].items()}
    if set(first) == {"inputs"} and set(answer) in (CLASSIFY, REGRESS):
        features = tf.train.Example.FromString(first["inputs"]).features.feature
        row = {k: v.bytes_list.value[0].decode() for k, v in sorted(features.items())}
        body["examples"] = [row]
        if set(answer) == REGRESS:
            return "regress", body, {"results": [answer["outputs"]]}
        pairs = zip(answer["classes"], answer["scores"], strict=True)
        return "classify", body, {"results": [[list(pair) for pair in pairs]]}
    only = next(iter(answer.values())) if len(answer) == 1 else answer
    return "predict", {**body, "instances": [first]}, {"predictions": [only]}


def _rounded(value):
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _json(value) -> str:
    text = json.dumps(value, ensure_ascii=False, default=c_api.to_json)
    return text.encode("utf-8", "replace").decode()
