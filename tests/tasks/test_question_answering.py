"""Windows, targets and losses of the reader; the graph answers as Python does."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from tests.text.texts import PARTS, fuzzed
from tfllm.core.errors import UserError
from tfllm.data.batching import BatchPlan
from tfllm.tasks.question_answering import (
    NEVER,
    QuestionAnswering,
    answer_tokens,
    best_spans,
    log_shares,
    task_for,
    trimmed,
)
from tfllm.text import Tokenizer

KINDS = ("characters", "words", "wordpiece", "bpe", "unigram")
SHAPE = {"architecture": "transformer", "hidden_size": 16, "num_layers": 1}
SHAPE |= {"num_heads": 2, "intermediate_size": 32, "dropout": 0.0, "max_length": 24}
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
ANSWERS = ["李小明", "cafe\u0301", FAMILY, "❤\ufe0f", "Ｆｕｌｌ　ｗｉｄｔｈ", "naïve"]
ANSWERS += ["½ ﬁne", "a\u00a0b", "नमस्ते", "e\u0301\u0323", "New\u2003York"]
TEXTS = [f" {answer}\u3000, {answer}\t." for answer in ANSWERS]
ODD = [*PARTS[:40], *fuzzed(30, 8, ANSWERS), "", " \u3000", " ".join(ANSWERS) * 6]


def row(question, context, *answers):
    found = [(context.find(text), text) for text in answers]
    return {"text": question, "context": context, "answers": found}


def task(kind="wordpiece", rows=None, **options):
    tokenizer = Tokenizer.train(TEXTS * 3, kind, 300)
    shape = SHAPE | {k: options.pop(k) for k in SHAPE if k in options}
    rows = rows or [row("a", "b c", "b"), row("a", "b c")]
    return task_for(rows, tokenizer, shape, **{"stride": 5, "style": "squad"} | options)


def model_of(one, seed=0):
    """A model that is sure of what it says."""
    keras.utils.set_random_seed(seed)
    model = one.build_model("float32")
    head = model.get_layer("logits")
    head.set_weights([20 * array for array in head.get_weights()])
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_answers_come_back_from_their_tokens(kind):
    one = task(kind)
    for answer in ANSWERS:
        text = f"x {answer} , y \u3000 {answer}"
        ((_, offsets),) = one._contexts([row("", text)]).values()
        for start in (2, len(text) - len(answer)):
            first, last = answer_tokens([(-1, "no"), (start, answer)], offsets)
            span = trimmed(text, offsets[first][0], offsets[last][1])
            assert text[slice(*span)] == answer and span[0] == start
    assert answer_tokens([], offsets) is None
    assert answer_tokens([(-1, "no")], offsets) == (-1, -1)


def test_windows_cover_a_context_and_point_at_the_answer():
    words = [f"w{i}" for i in range(40)]
    text, answer = " ".join(words), " ".join(words[17:19])
    one = task("words", max_length=16, stride=4, max_windows=9)
    tokenizer = Tokenizer.train([text, "which one ?"], "words", 60)
    shape = replace(one.model, vocabulary_size=tokenizer.vocabulary_size)
    one = QuestionAnswering(tokenizer, shape, stride=4, max_windows=9)
    rows = [row("which one ?", text, answer), row("one", "w1")]
    rows += [row("one", text, "w39"), row("one", text, "not there")]
    windows, lengths = one.columns(rows)
    ours = np.flatnonzero(np.asarray(windows["row"]) == 0)
    room, lead = 16 - 3 - 3, 1 + 3 + 1
    assert [int(windows["first"][i]) for i in ours] == list(range(0, 33, 4))
    read = [tokenizer.token_to_id(word) for word in words]
    for i in ours:
        ids, first = windows["token_ids"].row(i), int(windows["first"][i])
        assert list(ids[lead:-1]) == read[first : first + room]
        assert (
            windows["begin"][i] == lead and windows["count"][i] == len(ids) - lead - 1
        )
        start, end = int(windows["start"][i]), int(windows["end"][i])
        here = first <= 17 and first + room > 18
        assert [*ids[start : end + 1]] == (read[17:19] if here else [ids[0]])
    assert lengths[0] == 5 + 40 and lengths[1] == 3 + 1
    assert set(np.asarray(windows["start"])[np.asarray(windows["row"]) == 3]) == {-1}
    (last,) = np.flatnonzero(np.asarray(windows["row"]) == 1)
    assert (windows["start"][last], windows["end"][last]) == (0, 0)
    short = QuestionAnswering(tokenizer, one.model, stride=4, max_windows=2)
    windows, lengths = short.columns(rows)
    assert (np.asarray(windows["row"]) == 0).sum() == 2 and lengths[0] == 5 + 4 + room
    assert set(np.asarray(windows["start"])[np.asarray(windows["row"]) == 2]) == {-1}
    model = model_of(short)
    assert short.split(model, rows).cut[0] == 40 - 4 - room


def test_windows_overlap_by_an_answer():
    words = [f"w{i}" for i in range(60)]
    text = " ".join(words)
    tokenizer = Tokenizer.train([text, "which"], "words", 90)
    shape = replace(task().model, vocabulary_size=tokenizer.vocabulary_size)
    shape = replace(shape, max_length=24)
    for longest in (4, 64):
        one = QuestionAnswering(tokenizer, shape, max_answer_length=longest)
        rows = [row("which", text, " ".join(words[i : i + 4])) for i in range(57)]
        windows = one.columns(rows)[0]
        found = np.asarray(windows["row"])[np.asarray(windows["start"]) > 0]
        assert set(found) == set(range(57))


def test_an_answer_of_white_space_is_none():
    one = task("characters", max_windows=2)
    rows = [row("who", "   "), row("who", " \u3000 ")]
    for answer in one.split(model_of(one), rows).predictions:
        assert (answer["text"], answer["start"], answer["end"]) == ("", -1, -1)


def test_few_places_are_enough_for_many_answers():
    logits, one = np.zeros((2, 3, 2), "float32"), np.array([1, 1], "int32")
    _, found, *_ = best_spans(logits, one, one, 1, 20)
    assert found.shape == (2, 20)


def test_no_room_and_no_answers_are_told():
    with pytest.raises(UserError, match="leaves no room"):
        task(max_length=4)
    with pytest.raises(UserError, match="no question of the training data"):
        task(rows=[row("a", "b")])


def test_the_best_parts_are_found_among_all():
    pick = np.random.default_rng(0)
    logits = pick.normal(size=(3, 9, 2)).astype("float32") * 3
    begin, count = np.array([3, 2, 0], "int32"), np.array([5, 1, 0], "int32")
    shares, _ = log_shares(logits, begin, count)
    shares = keras.ops.convert_to_numpy(shares)
    nowhere, found, first, last = map(
        keras.ops.convert_to_numpy, best_spans(logits, begin, count, 3, 4)
    )
    for w in range(3):
        places = [0, *range(begin[w], begin[w] + count[w])]
        powers = np.exp(logits[w, sorted(set(places))].astype(float))
        logs = np.log(np.exp(logits[w].astype(float)) / powers.sum(0))
        assert nowhere[w] == pytest.approx(logs[0].sum(), abs=1e-5)
        spans = {
            (i, j): logs[i, 0] + logs[j, 1]
            for i in places[1:]
            for j in places[1:]
            if i <= j < i + 3
        }
        best = sorted(spans, key=spans.get, reverse=True)[:4]
        told = list(zip(first[w].tolist(), last[w].tolist(), strict=True))
        assert told[: len(best)] == best
        np.testing.assert_allclose(found[w][: len(best)], [spans[s] for s in best],
                                   atol=1e-5)  # fmt: skip
        assert (found[w][len(best) :] < NEVER / 2).all()


def test_loss_is_the_mean_of_both_ends_over_what_can_be_learned():
    rows = [row("a", " ".join(TEXTS), ANSWERS[0]), row("b", TEXTS[1])]
    rows.append(row("c", TEXTS[2], "not there"))
    one = task(rows=rows)
    windows, _ = one.columns(rows)
    plan = BatchPlan(windows.lengths, batch_size=16, max_length=24, shuffle=False)
    (micro,) = plan.step(0)
    batch = windows.gather(micro, one.pad_values())
    logits = np.random.default_rng(0).normal(size=(*batch["token_ids"].shape, 2))
    told = batch["start"] >= 0
    assert one.loss_counts(batch)["loss"] == told.sum() < len(windows)
    total = 0.0
    for w in np.flatnonzero(told):
        places = [0, *(batch["begin"][w] + np.arange(batch["count"][w]))]
        for side, end in enumerate(("start", "end")):
            values = logits[w, places, side]
            total += np.log(np.exp(values).sum()) - logits[w, batch[end][w], side]
    assert float(one.loss_sums(logits, batch)["loss"]) == pytest.approx(
        0.5 * total, rel=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "impossible"), [(kind, True) for kind in KINDS] + [("wordpiece", False)]
)
def test_the_graph_answers_as_python(kind, impossible):
    import tensorflow as tf

    from tfllm.tasks.question_answering_tf import ServedReader

    one = task(kind, max_windows=9, max_answer_length=6)
    one.impossible = impossible
    model = model_of(one)
    rows = [row(ODD[-i], text) for i, text in enumerate(ODD)]
    best, none = one.predict(model, one.columns(rows)[0])
    logs = [np.log(parts[0]["score"]) if parts else 0 for parts in best]
    one.threshold = float(np.median(none - logs)) + 1e-3
    wanted = one.split(model, rows)
    served = tf.function(ServedReader(one, model).__call__, autograph=False)
    texts = (tf.constant([r[key] for r in rows]) for key in ("text", "context"))
    got = {name: array.numpy().tolist() for name, array in served(*texts).items()}
    for i, answer in enumerate(wanted.predictions):
        told = got["answer"][i].decode(), got["start"][i], got["end"][i]
        assert told == (answer["text"], answer["start"], answer["end"]), rows[i]
        assert got["score"][i] == pytest.approx(answer["score"], abs=1e-5)
        assert got["cut"][i] == wanted.cut[i]
        start, end = max(told[1], 0), max(told[2], 0)
        assert rows[i]["context"][start:end] == told[0]
    silent = sum(not answer["text"] for answer in wanted.predictions)
    assert sum(wanted.cut) and 0 < silent < len(rows)


def test_settings_survive(tmp_path):
    one = task()
    one.threshold = 1.5
    config = one.to_config()
    again = QuestionAnswering.from_config(config, one.tokenizer)
    assert again == one and again.to_config() == config
