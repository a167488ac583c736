"""The training step against a step written out by hand."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfllm.core.errors import UserError
from tfllm.layers.token_embedding import TokenEmbedding
from tfllm.training.distribution_tf import make_strategy
from tfllm.training.optimizers import Schedule, layer_rates, make_optimizer
from tfllm.training.step_tf import TrainingModel

VOCABULARY, LENGTH = 23, 12


class TokenTask:
    """Predicts a function of every token: a loss with uneven counts."""

    def loss_counts(self, batch):
        return {"loss": tf.reduce_sum(tf.cast(batch["padding_mask"], "float32"))}

    def loss_sums(self, outputs, batch):
        losses = keras.ops.sparse_categorical_crossentropy(
            batch["target"], outputs, from_logits=True
        )
        mask = tf.cast(batch["padding_mask"], "float32")
        # `poison` is 1, or NaN where a row is to overflow.
        return {"loss": tf.reduce_sum(losses * mask * batch["poison"][:, None])}

    def metric_sums(self, outputs, batch):
        return {}


def make_core(l2=0.0, dtype=None):
    keras.utils.set_random_seed(3)
    regularizer = keras.regularizers.L2(l2) if l2 else None
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = TokenEmbedding(VOCABULARY, 8, name="token_embedding", dtype=dtype)(ids)
    x = keras.layers.Dense(16, "gelu", name="hidden", dtype=dtype)(x)
    x = keras.layers.Dense(
        VOCABULARY, kernel_regularizer=regularizer, name="out", dtype=dtype
    )(x)
    return keras.Model({"token_ids": ids}, keras.ops.cast(x, "float32"))


def batches(steps, rows=8, bad_step=None):
    """Steps of `rows` rows with uneven numbers of tokens."""
    random = np.random.default_rng(0)
    for step in range(steps):
        ids = random.integers(1, VOCABULARY, (rows, LENGTH)).astype("int32")
        counts = random.integers(1, LENGTH + 1, rows)
        mask = (np.arange(LENGTH) < counts[:, None]).astype("int32")
        poison = np.ones(rows, "float32")
        if step == bad_step:
            poison[-1] = np.nan
        yield {
            "token_ids": ids,
            "padding_mask": mask,
            "target": (ids * 7) % VOCABULARY,
            "poison": poison,
        }


def split(batch, parts):
    for part in range(parts):
        yield {name: np.split(value, parts)[part] for name, value in batch.items()}


def dataset(steps, parts=1, **options):
    def generate():
        for batch in batches(steps, **options):
            yield from split(batch, parts)

    first = next(generate())
    signature = {
        name: tf.TensorSpec([None, *value.shape[1:]], value.dtype)
        for name, value in first.items()
    }
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


def two_replicas():
    if len(tf.config.list_logical_devices("CPU")) < 2:
        pytest.skip("TensorFlow started before two devices could be made")
    return make_strategy("mirrored")


def train(steps=50, parts=1, strategy=None, optimizer=None, data=None, **options):
    scope = (strategy or tf.distribute.get_strategy()).scope()
    with scope:
        core = make_core(options.pop("l2", 0.0))
        optimizer = optimizer() if optimizer else keras.optimizers.SGD(0.5)
        optimizer.build(core.trainable_variables)
    micro = 1 if strategy else parts
    model = TrainingModel(
        core, TokenTask(), optimizer, micro_batches=micro, strategy=strategy, **options
    )
    data = data if data is not None else dataset(steps, parts)
    if strategy:
        data = strategy.distribute_datasets_from_function(lambda context, d=data: d)
    rows = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rows.append(dict(logs))
    )
    model.fit(data, steps_per_epoch=steps, verbose=0, callbacks=[record], shuffle=False)
    weights = np.concatenate([w.ravel() for w in core.get_weights()])
    return SimpleNamespace(weights=weights, logs=rows, model=model, core=core)


@pytest.mark.parametrize("bad_step", [None, 7])
def test_accumulation_gives_the_same_weights(bad_step):
    one = train(data=dataset(50, 1, bad_step=bad_step), clip_norm=0.05)
    four = train(parts=4, data=dataset(50, 4, bad_step=bad_step), clip_norm=0.05)
    assert np.abs(one.weights - four.weights).max() < 1e-5
    skipped = [log["bad_step"] for log in four.logs]
    assert sum(skipped) == (0 if bad_step is None else 1)
    assert int(four.model.optimizer.iterations) == 50 - int(sum(skipped))


def test_an_adversarial_step_is_the_mean_of_two_gradients():
    """Miyato et al., 2017, equation 5, in units of the vectors' own length."""
    batch, core = next(batches(1)), make_core()
    before = core.get_weights()
    mask = tf.cast(batch["padding_mask"], "float32")

    def gradients(offset):
        with tf.GradientTape() as tape:
            vectors = tf.gather(core.weights[0].value, batch["token_ids"])
            tape.watch(offset)
            hidden = core.get_layer("hidden")(vectors + offset)
            outputs = core.get_layer("out")(hidden)
            loss = TokenTask().loss_sums(outputs, batch)["loss"] / tf.reduce_sum(mask)
        return vectors, tape.gradient(loss, [w.value for w in core.weights] + [offset])

    vectors, (*clean, slope) = gradients(tf.zeros([8, LENGTH, 8]))
    lengths = tf.reduce_sum(tf.norm(vectors, axis=-1) * mask, 1) / tf.reduce_sum(
        mask, 1
    )
    size = tf.norm(tf.reshape(slope, [8, -1]), axis=1)
    offset = 0.5 * (lengths / size)[:, None, None] * slope
    pushed = gradients(offset)[1][:-1]
    wanted = [
        w - 0.5 * (tf.convert_to_tensor(a) + tf.convert_to_tensor(b)) / 2
        for w, a, b in zip(before, clean, pushed, strict=True)
    ]
    found = train(steps=1, adversarial=0.5)
    for a, b in zip(found.core.get_weights(), wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    one = train(data=dataset(20, 1), adversarial=0.5)
    four = train(parts=4, data=dataset(20, 4), adversarial=0.5)
    assert np.abs(one.weights - four.weights).max() < 1e-5


def test_mixed_texts_have_mixed_losses(monkeypatch):
    """Zhang et al., 2018, equation 1, with token vectors as inputs."""
    batch, core, share = next(batches(1)), make_core(), 0.3
    other = {name: value[::-1] for name, value in batch.items()}
    before = core.get_weights()
    total = batch["padding_mask"].sum()
    with tf.GradientTape() as tape:
        table = core.weights[0].value
        own, new = (tf.gather(table, one["token_ids"]) for one in (batch, other))
        hidden = core.get_layer("hidden")(share * own + (1 - share) * new)
        outputs = core.get_layer("out")(hidden)
        losses = [TokenTask().loss_sums(outputs, one)["loss"] for one in (batch, other)]
        loss = (share * losses[0] + (1 - share) * losses[1]) / total
    gradients = tape.gradient(loss, [w.value for w in core.weights])
    monkeypatch.setattr(TrainingModel, "_share", lambda self, number: share)
    found = train(steps=1, mixup=0.2)
    assert found.logs[0]["loss"] == pytest.approx(float(loss), abs=1e-5)
    for a, w, slope in zip(found.core.get_weights(), before, gradients, strict=True):
        np.testing.assert_allclose(a, w - 0.5 * tf.convert_to_tensor(slope), atol=1e-6)


def test_shares_are_those_of_the_seed_and_the_step():
    first, again, other = (train(steps=5, mixup=0.4, seed=s).weights for s in (1, 1, 2))
    assert (first == again).all() and np.abs(first - other).max() > 1e-4
    model = train(steps=1, mixup=0.4, parts=2).model
    run = lambda: np.array([model._share(number) for number in range(2)])  # noqa: E731
    shares = []
    for step in range(400):
        model.optimizer.iterations.assign(step)
        shares.append(run())
    shares = np.array(shares)
    assert (shares[:, 0] != shares[:, 1]).any()
    assert abs(shares.mean() - 0.5) < 0.06  # and the variance of Beta(0.4, 0.4)
    assert shares.var() == pytest.approx(0.25 / 1.8, rel=0.15)
    two = train(strategy=two_replicas(), parts=2, data=dataset(5, 2), mixup=0.4)
    assert np.isfinite(two.weights).all()


def test_a_model_without_token_vectors_mixes_nothing():
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    core = keras.Model({"token_ids": ids}, keras.ops.cast(ids, "float32"))
    optimizer = keras.optimizers.SGD()
    with pytest.raises(UserError, match="--mixup"):
        TrainingModel(core, TokenTask(), optimizer, mixup=0.2)


def test_two_replicas_give_the_same_weights():
    strategy = two_replicas()
    one = train(data=dataset(50, 1, bad_step=7), clip_norm=0.05)
    two = train(
        strategy=strategy, data=dataset(50, 2, bad_step=7), clip_norm=0.05, parts=2
    )
    assert np.abs(one.weights - two.weights).max() < 1e-5
    assert [log["bad_step"] for log in two.logs].index(1.0) == 7


def test_loss_is_nats_a_real_token():
    """At 12 % fill, Keras' mean over all positions would show an eighth of it."""
    batch = next(batches(1))
    batch["padding_mask"] = np.zeros_like(batch["padding_mask"])
    batch["padding_mask"][:, :1] = 1
    batch["padding_mask"][0, :4] = 1
    signature = {
        name: tf.TensorSpec([None, *v.shape[1:]], v.dtype) for name, v in batch.items()
    }
    data = tf.data.Dataset.from_generator(lambda: [batch], output_signature=signature)
    core = make_core()
    logits = np.asarray(core({"token_ids": batch["token_ids"]}), "float64")
    log_z = np.log(np.exp(logits).sum(-1))
    picked = np.take_along_axis(logits, batch["target"][..., None], -1)[..., 0]
    mask = batch["padding_mask"]
    expected = ((log_z - picked) * mask).sum() / mask.sum()
    result = train(steps=1, data=data)
    assert result.logs[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert result.logs[0]["tokens"] == mask.sum()
    assert result.logs[0]["positions"] == mask.size


def test_clipping_is_by_the_norm_of_the_whole_gradient():
    free, clipped = train(steps=1), train(steps=1, clip_norm=0.01)
    start = np.concatenate([w.ravel() for w in make_core().get_weights()])
    step, clipped_step = free.weights - start, clipped.weights - start
    assert free.logs[0]["grad_norm"] == pytest.approx(
        np.linalg.norm(step) / 0.5, rel=1e-4
    )
    assert np.linalg.norm(clipped_step) == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_l2_is_added_once():
    plain, one = train(steps=1), train(steps=1, l2=0.1)
    four = train(steps=1, parts=4, l2=0.1)
    kernel = make_core().get_layer("out").kernel.numpy()
    penalty = 0.1 * (kernel**2).sum()
    assert one.logs[0]["loss"] - plain.logs[0]["loss"] == pytest.approx(
        penalty, rel=1e-4
    )
    assert four.logs[0]["loss"] == pytest.approx(one.logs[0]["loss"], rel=1e-5)


def test_adamw_matches_keras_and_spares_biases():
    core = make_core()
    optimizer = make_optimizer(
        "adamw",
        core.trainable_variables,
        learning_rate=1e-2,
        total_steps=5,
        weight_decay=0.5,
    )
    decayed = [optimizer._use_weight_decay(v) for v in core.trainable_variables]
    names = [v.path.rsplit("/", 1)[-1] for v in core.trainable_variables]
    assert [n for n, d in zip(names, decayed, strict=True) if not d] == ["bias", "bias"]
    model = TrainingModel(core, TokenTask(), optimizer)
    reference = make_core()
    own = keras.optimizers.AdamW(
        Schedule(1e-2, 5), weight_decay=0.5, beta_2=0.999, epsilon=1e-8
    )
    own.exclude_from_weight_decay(var_names=["bias"])
    model.fit(dataset(5), steps_per_epoch=5, verbose=0, shuffle=False)
    for batch in batches(5):
        with tf.GradientTape() as tape:
            outputs = reference({"token_ids": batch["token_ids"]})
            sums = TokenTask().loss_sums(outputs, batch)["loss"]
            loss = sums / batch["padding_mask"].sum()
        variables = reference.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in variables])
        own.apply([tf.convert_to_tensor(g) for g in gradients], variables)
    for ours, theirs in zip(core.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_moving_average_of_the_weights():
    result = train(steps=3, ema_decay=0.9)
    core, history = make_core(), []
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build(core.trainable_variables)
    single = TrainingModel(core, TokenTask(), optimizer)
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: history.append(
            core.get_weights()[0].copy()
        )
    )
    average = core.get_weights()[0].copy()
    single.fit(
        dataset(3), steps_per_epoch=3, verbose=0, callbacks=[keep], shuffle=False
    )
    for step, weights in enumerate(history):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights
    np.testing.assert_allclose(result.model.ema[0].numpy(), average, atol=1e-6)


def test_float16_overflow_halves_the_scale_and_skips():
    with_half = make_core(dtype="mixed_float16")
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(with_half.trainable_variables)
    model = TrainingModel(with_half, TokenTask(), optimizer)
    before = with_half.get_weights()
    model.fit(dataset(1, bad_step=0), steps_per_epoch=1, verbose=0, shuffle=False)
    assert float(model.loss_scale) == 2.0**14
    for old, new in zip(before, with_half.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    model.fit(dataset(1), steps_per_epoch=1, verbose=0, shuffle=False)
    assert int(model.good_steps) == 1
    assert any(
        not np.array_equal(old, new)
        for old, new in zip(before, with_half.get_weights(), strict=True)
    )


@pytest.mark.parametrize("name", ["adafactor", "lion", "muon", "sgd"])
def test_optimizers_match_keras_on_one_and_two_replicas(name):
    """The same gradients through Keras' own `apply` give the same weights."""
    strategy = two_replicas()

    def make(core):
        return make_optimizer(
            name,
            core.trainable_variables,
            learning_rate=1e-2,
            total_steps=5,
            weight_decay=0.1,
        )

    runs = []
    for scope in (None, strategy):
        with (scope or tf.distribute.get_strategy()).scope():
            core = make_core()
            optimizer = make(core)
        model = TrainingModel(core, TokenTask(), optimizer, strategy=scope)
        data = dataset(5, 2 if scope else 1)
        if scope:
            data = scope.distribute_datasets_from_function(lambda context, d=data: d)
        model.fit(data, steps_per_epoch=5, verbose=0, shuffle=False)
        runs.append(core.get_weights())
    reference = make_core()
    own = make(reference)
    if name == "muon":  # it keeps a second decay, for what AdamW moves
        own.adam_weight_decay = 0.1
    for batch in batches(5):
        with tf.GradientTape() as tape:
            outputs = reference({"token_ids": batch["token_ids"]})
            sums = TokenTask().loss_sums(outputs, batch)["loss"]
            loss = sums / batch["padding_mask"].sum()
        variables = reference.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in variables])
        own.apply([tf.convert_to_tensor(g) for g in gradients], variables)
    for one, two, theirs in zip(*runs, reference.get_weights(), strict=True):
        # Lion moves by the sign: a gradient of 1e-9 may go either way.
        near = np.mean(np.abs(one - theirs) < 2e-5) > (
            0.98 if name == "lion" else 0.999
        )
        assert near and np.mean(np.abs(two - theirs) < 2e-5) > 0.98


def test_layer_decay_slows_lower_blocks():
    paths = ["token_embedding/embeddings", "block_0/up/kernel", "block_1/up/bias"]
    paths += ["pooler/kernel", "out/bias"]
    variables = [SimpleNamespace(path=path) for path in paths]
    assert layer_rates(variables, 0.5) == [0.125, 0.25, 0.5, 1.0, 1.0]
    assert layer_rates(variables[3:], 0.5) == [1.0, 1.0]
    start = np.concatenate([w.ravel() for w in make_core().get_weights()])
    rates = [0.0, 0.5, 0.5, 1.0, 1.0]
    full, slowed = train(steps=1), train(steps=1, rates=rates)
    step, slow, place = full.weights - start, slowed.weights - start, 0
    for weights, rate in zip(make_core().get_weights(), rates, strict=True):
        part = slice(place, place + weights.size)
        np.testing.assert_allclose(slow[part], rate * step[part], atol=1e-6)
        place += weights.size


def test_several_losses_have_their_own_counts():
    class TwoLosses(TokenTask):
        def loss_counts(self, batch):
            rows = tf.reduce_sum(batch["poison"])
            return super().loss_counts(batch) | {"rows": rows}

        def loss_sums(self, outputs, batch):
            rows = tf.reduce_mean(outputs**2, (1, 2)) * batch["poison"]
            return super().loss_sums(outputs, batch) | {"rows": tf.reduce_sum(rows)}

    def run(parts):
        core = make_core()
        optimizer = keras.optimizers.SGD(0.5)
        optimizer.build(core.trainable_variables)
        model = TrainingModel(core, TwoLosses(), optimizer, micro_batches=parts)
        kept = []
        record = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: kept.append(dict(logs))
        )
        model.fit(dataset(3, parts), steps_per_epoch=3, callbacks=[record], verbose=0)
        return core.get_weights(), kept

    (one, logs), (four, split_logs) = run(1), run(4)
    for a, b in zip(one, four, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    batch = next(batches(1))
    outputs = make_core()({"token_ids": batch["token_ids"]})
    rows = float(tf.reduce_mean(outputs**2))
    plain = train(steps=1).logs[0]["loss"]
    assert logs[0]["rows"] == pytest.approx(rows, rel=1e-4)
    assert logs[0]["loss"] == pytest.approx(plain + rows, rel=1e-4)
    assert split_logs[0]["loss"] == pytest.approx(logs[0]["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_schedule_warms_up_and_falls(kind):
    schedule = Schedule(1e-3, 100, 10, kind)
    rates = [float(schedule(step)) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == pytest.approx(1e-3) and max(rates) <= 1.0001e-3
    assert np.all(np.diff(rates[:10]) > 0) and np.all(np.diff(rates[10:]) <= 1e-12)
    assert 0 < rates[-1] <= (1.001e-3 if kind == "constant" else 2e-5)
    again = Schedule.from_config(schedule.get_config())
    assert float(again(37)) == float(schedule(37))
    with pytest.raises(ValueError, match="square"):
        Schedule(1e-3, 100, 10, "square")


def test_inverse_root_and_stable_schedules():
    root = Schedule(1e-3, 1000, 100, "inverse_sqrt")
    assert float(root(99)) == pytest.approx(1e-3)
    assert float(root(399)) == pytest.approx(5e-4)
    stable = Schedule(1e-3, 1000, 100, "wsd")
    rates = [float(stable(step)) for step in (49, 99, 500, 799, 900, 999)]
    wanted = [5e-4, 1e-3, 1e-3, 1e-3, 5e-4, 5e-6]
    assert rates == pytest.approx(wanted, rel=1e-3)
