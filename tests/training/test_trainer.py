"""Whole runs: replicas, workers, accumulation, stops, damage."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tiny_trainer import last_arrays, train

from tfllm.core.errors import UserError

SCRIPT = Path(__file__).with_name("tiny_trainer.py")


def two_devices():
    if len(tf.config.list_logical_devices("CPU")) < 2:
        pytest.skip("TensorFlow started before two devices could be made")


def start_workers(directory, root, **flags):
    """Two worker processes on this machine."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(f"127.0.0.1:{probe.getsockname()[1]}")
    flags = json.dumps({"strategy": "multi_worker"} | flags)
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": ports}, "task": {"type": "worker"}}
        task["task"]["index"] = index
        environment = os.environ | {"TF_CONFIG": json.dumps(task)}
        environment |= {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{root}"}
        environment |= {"PYTHONUNBUFFERED": "1"}
        processes.append(
            subprocess.Popen(
                [sys.executable, SCRIPT, str(directory), flags],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def wait(processes):
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def difference(one, other):
    assert set(one) == set(other)
    shared = [n for n in one if not n.startswith(("optimizer/1", "random/"))]
    return max(np.abs(one[n] * 1.0 - other[n] * 1.0).max() for n in shared)


def metrics(directory):
    return [json.loads(line) for line in open(directory / "metrics.jsonl")]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """50 steps on one device, one of which overflows."""
    directory = tmp_path_factory.mktemp("one") / "run"
    trainer = train(directory, poison=123)
    assert trainer.total_steps == 50 and trainer.state.bad_steps == 1
    return directory


def test_four_accumulation_steps_equal_one_batch(one, tmp_path):
    train(tmp_path / "run", poison=123, batch_size=2, gradient_accumulation_steps=4)
    assert difference(last_arrays(one), last_arrays(tmp_path / "run")) < 1e-5


def test_two_replicas_equal_one_device(one, tmp_path):
    two_devices()
    trainer = train(tmp_path / "run", poison=123, batch_size=4, strategy="mirrored")
    assert trainer.strategy.num_replicas_in_sync == 2
    assert trainer.state.bad_steps == 1
    assert difference(last_arrays(one), last_arrays(tmp_path / "run")) < 1e-5


def test_two_workers_equal_one_device(one, tmp_path, root):
    flags = {"poison": 123, "batch_size": 4, "eval_steps": 10}
    statuses, outputs = wait(start_workers(tmp_path / "run", root, **flags))
    assert statuses == [0, 0], outputs
    assert "worker 1 is done" in outputs[1]
    assert difference(last_arrays(one), last_arrays(tmp_path / "run")) < 1e-5
    rows = metrics(tmp_path / "run")
    assert sum(row.get("bad_steps", 0) for row in rows) == 1
    evaluated = [row["step"] for row in rows if "validation_loss" in row]
    assert evaluated == [10, 20, 30, 40, 50]
    best = json.loads((tmp_path / "run/checkpoints/best/state.json").read_text())
    assert best["best_score"] == min(row.get("validation_loss", 9) for row in rows)


@pytest.mark.slow
def test_workers_stop_together_and_go_on_exactly(tmp_path, root):
    """SIGTERM to one stops both; SIGKILL of one ends the other; then both resume."""
    flags = {"rows": 1600, "batch_size": 4, "dropout": 0.2, "eval_steps": 20}
    assert wait(start_workers(tmp_path / "whole", root, **flags))[0] == [0, 0]
    target = tmp_path / "stopped"

    def started(processes, step):
        while not (target / f"checkpoints/step-{step:06d}").exists():
            assert all(process.poll() is None for process in processes), step
            time.sleep(0.02)

    processes = start_workers(target, root, **flags)
    started(processes, 20)
    processes[1].send_signal(signal.SIGTERM)
    statuses, outputs = wait(processes)
    assert statuses == [130, 130], outputs
    assert all("stopped at step" in output for output in outputs)
    reached = max(target.glob("checkpoints/step-*")).name

    processes = start_workers(target, root, **flags)
    goal = (int(reached[5:]) // 20 + 1) * 20
    started(processes, goal)
    processes[1].kill()
    statuses, outputs = wait(processes)
    assert statuses == [2, -signal.SIGKILL], outputs
    assert "a worker was lost after step" in outputs[0]
    assert "Traceback" not in outputs[0]

    assert wait(start_workers(target, root, **flags))[0] == [0, 0]
    whole, resumed = last_arrays(tmp_path / "whole"), last_arrays(target)
    assert set(whole) == set(resumed)
    for name, array in whole.items():
        assert array.tobytes() == resumed[name].tobytes(), name


@pytest.mark.slow
def test_early_stopping_is_the_chiefs_decision(tmp_path, root):
    flags = {"batch_size": 4, "eval_steps": 5, "patience": 1, "learning_rate": 1e-12}
    statuses, outputs = wait(start_workers(tmp_path / "run", root, **flags))
    assert statuses == [0, 0], outputs
    state = json.loads(
        (max((tmp_path / "run/checkpoints").glob("step-*")) / "state.json").read_text()
    )
    assert state["done"] and state["step"] < 50
    assert all("stopping" in output for output in outputs)


def test_replicas_draw_their_own_masks(tmp_path):
    two_devices()
    options = {"dropout": 0.5, "batch_size": 4, "strategy": "mirrored"}
    trainer = train(tmp_path / "a", max_steps=5, **options)
    for variable in trainer.model.random_variables:
        first, second = (
            t.numpy()
            for t in trainer.strategy.experimental_local_results(variable.value)
        )
        assert first[0] != second[0] and first[1] == second[1] == 5


@pytest.mark.parametrize("strategy", ["one", "mirrored"])
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_resume_is_exact(tmp_path, strategy, precision):
    two_devices()
    options = {"dropout": 0.3, "batch_size": 4, "strategy": strategy, "epochs": 2}
    options |= {"ema_decay": 0.9, "optimizer": "adamw", "rows": 80, "save_minutes": 0}
    options |= {"freeze": ["block_0/*"], "patience": 50, "precision": precision}
    train(tmp_path / "whole", **options)
    steps = 80 // (4 if strategy == "one" else 8)
    target = tmp_path / "broken"

    def stop(trainer):
        raise RuntimeError("killed")

    from tfllm.training import trainer_tf

    real = trainer_tf.Trainer.save

    def save(trainer):
        path = real(trainer)
        if trainer.state.step == steps + 3:
            raise RuntimeError("killed")
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_tf.Trainer, "save", save)
        with pytest.raises(RuntimeError):
            train(target, **options)
    # The newest checkpoint is damaged: the one before it is as good.
    newest = max(target.glob("checkpoints/step-*"))
    (newest / "model.safetensors").write_bytes(b"half")
    train(target, **options)
    whole, resumed = last_arrays(tmp_path / "whole"), last_arrays(target)
    assert set(whole) == set(resumed)
    for name, array in whole.items():
        assert array.tobytes() == resumed[name].tobytes(), name
    best = [(d / "checkpoints/best/model.safetensors") for d in (target,)]
    assert (
        best[0].read_bytes()
        == (tmp_path / "whole/checkpoints/best/model.safetensors").read_bytes()
    )


def test_frozen_weights_stay(tmp_path):
    start = train(tmp_path / "start", max_steps=1, learning_rate=0.0)
    before = {v.path: v.numpy() for v in start.core.weights}
    trained = train(tmp_path / "run", freeze=["embedding/*", "block_*"])
    for variable in trained.core.weights:
        same = np.array_equal(before[variable.path], variable.numpy())
        assert same == (not variable.path.startswith("out")), variable.path
    with pytest.raises(UserError, match=r"matches no weight.*embedding"):
        train(tmp_path / "none", freeze=["encoder/*"])


def test_too_many_bad_steps_end_the_run(tmp_path):
    with pytest.raises(UserError, match="steps in a row were not finite"):
        train(tmp_path / "run", learning_rate=1e30, clip_norm=0.0, max_bad_steps=3)


def test_full_disk_names_the_last_good_checkpoint(tmp_path, monkeypatch):
    from tfllm.training.logs import StepLog

    real = StepLog.write

    def write(log, row):
        if row["step"] > 20:
            raise OSError(errno.ENOSPC, "No space left on device", str(log.path))
        real(log, row)

    monkeypatch.setattr(StepLog, "write", write)
    with pytest.raises(UserError, match=r"No space left.*step-000020"):
        train(tmp_path / "run", eval_steps=20)


def test_tokens_per_batch_gives_short_texts_larger_batches(tmp_path):
    trainer = train(tmp_path / "run", tokens_per_batch=48, max_steps=20)
    assert len({rows * length for rows, length in trainer.plan.shapes}) <= 2
    assert len({rows for rows, _ in trainer.plan.shapes}) > 1
    rows = [row for row in metrics(tmp_path / "run") if "padding_share" in row]
    assert all(0 <= row["padding_share"] < 0.6 for row in rows)
    assert all(0 <= row["data_wait_share"] <= 1 for row in rows)
    with pytest.raises(UserError, match="--packing"):
        train(tmp_path / "no", packing=True)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_twenty_kills_with_frozen_weights(tmp_path, root, packing):
    """SIGKILL at any moment, checkpoints all the time: the same bits in the end."""
    options = {"rows": 8000, "epochs": 2, "dropout": 0.2, "ema_decay": 0.99}
    options |= {"optimizer": "adamw", "freeze": ["embedding/*", "block_0/*"]}
    options |= {"save_minutes": 0, "packs": packing, "packing": packing}
    options |= {"tokens_per_batch": 24, "gradient_accumulation_steps": 2}
    options |= {"eval_steps": 100, "learning_rate": 1e-3}
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    path = f"{os.environ.get('PYTHONPATH', '')}:{root}"
    environment |= {"PYTHONPATH": path}
    target, random = tmp_path / "killed", np.random.default_rng(packing)

    def start(directory):
        command = [sys.executable, SCRIPT, str(directory), json.dumps(options)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    def newest():
        return max((p.name for p in target.glob("checkpoints/step-*")), default="")

    kills = 0
    while kills < 20:
        process, before = start(target), newest()
        while process.poll() is None and newest() == before:
            time.sleep(0.002)
        time.sleep(random.random() * 0.5)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    assert kills == 20, f"the run ended after {kills} kills"
    assert start(target).wait() == 0
    assert start(tmp_path / "whole").wait() == 0
    whole, resumed = last_arrays(tmp_path / "whole"), last_arrays(target)
    assert set(whole) == set(resumed)
    for name, array in whole.items():
        assert array.tobytes() == resumed[name].tobytes(), name
