"""The tagger's task: words by offsets, targets, losses; the graph answers the same."""

import keras
import numpy as np
import pytest

from tests.text.texts import HARD, PARTS, fuzzed, marks
from tfllm.core.errors import UserError
from tfllm.data.batching import BatchPlan
from tfllm.data.readers import Records
from tfllm.data.tagged import entity_types, tagged_row
from tfllm.evaluation.spans import Span, over, read_tags
from tfllm.tasks.token_classification import TokenClassification, task_for
from tfllm.text import Tokenizer

KINDS = ("characters", "words", "wordpiece", "bpe", "unigram")
SENTENCES = [
    "Ada Lovelace met Charles, in New York.",
    "李小明去了上海大学😀",
    "e\u0301t ﬁn",
]
ODD = [*PARTS, *HARD[:4], *fuzzed(120, 5, ["New York", "李小明"]), "a b " * 40]
ODD = [text for text in ODD if not marks(text)]
SHAPE = {"architecture": "lstm", "embedding_size": 8, "hidden_size": 8, "ngrams": 3}
SHAPE |= {"ngram_buckets": 64, "max_length": 24}


def row(text, *found, intent=None):
    """A record with the parts of a text that are `type:part`."""
    entities = []
    for kind, part in (one.split(":") for one in found):
        start = text.index(part)
        entities.append(Span(start, start + len(part), kind))
    return {"text": text, "words": [], "entities": entities, "intent": intent or "x"}


ROWS = [
    row("Ada Lovelace met Charles in New York.", "P:Ada Lovelace", "L:New York"),
    row("李小明去了上海大学", "P:李小明", "L:上海", intent="y"),
]


def task(kind="wordpiece", special=False, rows=ROWS, scheme="bioes", **shape):
    tokenizer = Tokenizer.train(SENTENCES * 3, kind, 200)
    options = {"special_tokens": special}
    return task_for(
        rows, entity_types(Records(rows)), tokenizer, scheme, SHAPE | shape, **options
    )


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_found_by_offsets(kind):
    one = task(kind, max_length=60)
    text = "Ada Lovelace, unseenish 李小明e\u0301t"
    (read,) = one.read([text])
    words = [text[start:end] for start, end in read.words]
    assert len(read.places) == len(words) and read.cut == 0
    if kind == "characters":
        assert "".join(words) == text
    else:
        assert {"Ada", "Lovelace", ","} <= set(words)
        assert "unseenish" in words
    (short,) = one.read(["a b " * 80])
    assert len(short.ids) == 60 and short.cut > 0


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
@pytest.mark.parametrize("special", [False, True])
def test_targets_say_where_the_entities_are(scheme, special):
    one = task(special=special, scheme=scheme)
    columns, lengths = one.columns(ROWS)
    assert lengths.tolist() == [len(x.ids) for x in one.read([r["text"] for r in ROWS])]
    for i, record in enumerate(ROWS):
        (read,) = one.read([record["text"]])
        assert columns["places"].row(i).tolist() == read.places
        names = [one.model.tags[tag] for tag in columns["tags"].row(i)]
        assert over(read_tags(names), read.words) == record["entities"]
    assert columns["intent"].tolist() == [0, 1]
    unknown = [row("Ada", "Z:Ada", intent="z")]
    assert one.columns(unknown)[0]["tags"].values.tolist() == [0]
    assert one.columns(unknown)[0]["intent"].tolist() == [-1]


def test_losses_are_sums_with_counts_of_their_own():
    one = task(rows=[*ROWS])
    columns, _ = one.columns([*ROWS, row("Ada", intent="z")])
    (micro,) = BatchPlan([9] * 3, batch_size=4, max_length=24).step(0)
    batch = columns.gather(micro, one.pad_values())
    model = one.build_model("float32")
    inputs = {tensor.name: batch[tensor.name] for tensor in model.inputs}
    outputs = model(inputs)
    counts, sums = one.loss_counts(batch), one.loss_sums(outputs, batch)
    assert float(counts["tags"]) == sum(columns["places"].lengths)
    assert float(counts["intent"]) == 2
    # Untrained, all tags are about as likely: a little less than all paths.
    assert 0 < float(sums["tags"]) < float(counts["tags"]) * np.log(9) + 3
    assert 0.5 < float(sums["intent"]) / 2 < 1.0
    for total, count in one.metric_sums(outputs, batch).values():
        assert 0 <= float(total) <= float(count)
    alone = task(crf=False)
    plain = alone.build_model("float32")
    assert not any("crf" in weight.path for weight in plain.weights)
    assert float(alone.loss_sums(plain(inputs), batch)["tags"]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_answers_the_same_on_odd_texts(kind):
    tf = pytest.importorskip("tensorflow")
    from tfllm.tasks.token_classification_tf import ServedTagger

    keras.utils.set_random_seed(2)
    one = task(kind, special=kind == "wordpiece")
    model = one.build_model("float32")
    for weight in model.weights:  # sure of nothing, but not all alike
        weight.assign(2 * np.random.default_rng(1).normal(size=weight.shape))
    found = one.split(model, [{"text": text} for text in ODD])
    served = tf.function(ServedTagger(one, model))(tf.constant(ODD))
    answer = {name: value.numpy() for name, value in served.items()}
    assert sum(answer["count"]) > len(ODD)
    for i, text in enumerate(ODD):
        count = answer["count"][i]
        got = [
            Span(int(start), int(end), kind.decode())
            for start, end, kind in zip(
                *(answer[name][i, :count] for name in ("starts", "ends", "tags")),
                strict=True,
            )
        ]
        assert got == found.predictions[i], repr(text)
        parts = [part.decode() for part in answer["tokens"][i, :count]]
        assert parts == [text[start:end] for start, end, _ in got], repr(text)
        scores = answer["scores"][i]
        np.testing.assert_allclose(scores[:count], found.span_scores[i], atol=1e-4)
        assert not scores[count:].any() and not answer["tokens"][i, count:].any()
        assert answer["cut"][i] == found.cut[i]
        assert answer["intent"][i].decode() == found.intent_predictions[i]
    np.testing.assert_allclose(answer["score"], found.scores, atol=1e-4)


def test_a_config_makes_the_same_task_again():
    one = task()
    again = TokenClassification.from_config(one.to_config(), one.tokenizer)
    assert again == one
    with pytest.raises(UserError, match="no row of train has an entity"):
        task(rows=[row("a b")])
    joined = tagged_row(["a", "b"], [Span(1, 2, "X")], lambda *_: " ")
    assert joined["text"] == "a b" and joined["entities"] == [(2, 3, "X")]
