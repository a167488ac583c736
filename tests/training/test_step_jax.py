"""The step on JAX against the step on TensorFlow, which is the reference."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SETTINGS = {
    "plain": {"optimizer": "sgd"},
    "everything": {
        "optimizer": "adamw",
        "micro_batches": 2,
        "clip_norm": 0.5,
        "ema_decay": 0.9,
        "layer_decay": 0.7,
        "poison": 100,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_jax_and_tensorflow_give_the_same_weights(name, tmp_path, root):
    pytest.importorskip("jax")
    made = {}
    for backend in ("tensorflow", "jax"):
        path = tmp_path / f"{backend}.npz"
        environment = {"KERAS_BACKEND": backend, "PYTHONPATH": str(root)}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
        program = Path(__file__).with_name("step_of_backend.py")
        command = [sys.executable, program, path, json.dumps(SETTINGS[name])]
        subprocess.run(command, env=os.environ | environment, check=True)
        made[backend] = np.load(path)
    ours, reference = made["jax"], made["tensorflow"]
    assert reference["bad_step"].sum() == (1 if "poison" in SETTINGS[name] else 0)
    assert np.nanmax(reference["loss"]) > np.nanmin(reference["loss"])
    for key in reference.files:
        np.testing.assert_allclose(ours[key], reference[key], rtol=2e-5, atol=1e-5)


def test_the_benchmark_for_an_accelerator_runs(tmp_path, root):
    pytest.importorskip("jax")
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    program = root / "tools/benchmarks/gpt2_jax.py"
    options = ["--small", "--rows", "4", "--steps", "10", "--rounds", "1"]
    command = [sys.executable, program, *options]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    found = json.loads((tmp_path / "runs/benchmarks/gpt2_jax.json").read_text())
    assert found["losses"][-1] < found["losses"][0]
