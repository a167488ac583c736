"""Attributions by leaving out."""

import io

import numpy as np
import pytest
from rich.console import Console

from tfllm.explain.occlusion import Attribution, explain, render, split, to_html


def linear(weights, bias=0.0):
    """A model whose log-odds are a sum over words, so that the shares are known."""

    def predict(texts):
        totals = [bias + sum(w * (k in t) for k, w in weights.items()) for t in texts]
        return 1 / (1 + np.exp(-np.array(totals)))

    return predict


def units(text, **options):
    return [text[start:end] for start, end in split(text, **options)]


def test_units():
    assert units("Don't stop, 2024 naïve") == ["Don't", "stop", ",", "2024", "naïve"]
    assert units("电影很good！\n是") == ["电", "影", "很", "good", "！", "是"]
    assert units("한국 영화 カメラ") == ["한국", "영화", "カ", "メ", "ラ"]
    assert units("") == units(" \n\t") == []
    long = units("word " * 1000, max_units=100)
    assert len(long) == 100 and long[0] == ("word " * 10).strip()


def test_shares_of_a_linear_model():
    weights = {"wonderful": 3.0, "dull": -1.0, "film": 0.0}
    found = explain("a wonderful, dull film", linear(weights))
    shares = dict(zip(found.units, found.shares, strict=True))
    assert shares["wonderful"] == pytest.approx(0.75)
    assert shares["dull"] == pytest.approx(-0.25)
    assert shares["film"] == shares[","] == 0
    assert np.abs(found.shares).sum() == pytest.approx(1)
    assert found.top(2) == [
        ("wonderful", pytest.approx(0.75)),
        ("dull", pytest.approx(-0.25)),
    ]
    assert found.probability == pytest.approx(1 / (1 + np.exp(-2)))


def test_a_sure_answer_still_has_shares():
    found = explain("好 很 差", linear({"好": 4.0, "很": 2.0}, bias=8))
    assert found.shares == pytest.approx([2 / 3, 1 / 3, 0], abs=0.01)


def test_long_texts_go_in_batches():
    sizes = []

    def predict(texts):
        sizes.append(len(texts))
        return linear({"needle": 2.0})(texts)

    text = "hay " * 3000 + "needle " + "hay " * 3000
    found = explain(text, predict, max_units=100, batch_size=30)
    assert sizes == [30, 30, 30, len(found.units) + 1 - 90]
    assert "needle" in found.top(1)[0][0] and found.top(1)[0][1] == pytest.approx(1)


def test_nothing_to_explain():
    assert explain("", linear({})).units == []
    flat = explain("one two", lambda texts: [0.5] * len(texts))
    assert flat.shares.tolist() == [0, 0] and flat.top() == []
    assert "one two" in to_html(flat)
    with pytest.raises(ValueError, match="shape"):
        explain("one", lambda texts: np.zeros((len(texts), 2)))


def test_rendering():
    text = "<b>好 & 坏\n"
    found = Attribution(text, [(3, 4), (7, 8)], np.array([0.75, -0.25]), 0.9)
    page = to_html(found)
    assert "&lt;b&gt;" in page and "&amp;" in page and "<b>" not in page
    assert "background-color: #00873c" in page and ">好</span>" in page
    painted = render(found)
    assert painted.plain == text
    assert len(painted.spans) == 2
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="truecolor").print(painted)
    assert "48;2;0;135;60m好" in out.getvalue()
