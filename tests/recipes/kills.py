"""Runs that are killed and go on."""

import json
import os
import random
import signal
import subprocess
import sys
import time

from safetensors.numpy import load_file


def weights(run):
    """All that training leaves: the last checkpoint's arrays and the best one's."""
    last = max(run.glob("checkpoints/step-*"))
    arrays = load_file(last / "model.safetensors")
    arrays |= load_file(last / "training.safetensors")
    best = load_file(run / "checkpoints/best/model.safetensors")
    return arrays | {f"best/{name}": array for name, array in best.items()}


def steps_written(run) -> str:
    """Every checkpoint that has been there so far changes this."""
    found = sorted(path.name for path in run.glob("checkpoints/step-*"))
    return found[-1] if found else ""


def assert_kills_change_nothing(
    recipe, root, name, arguments, folder, kills=1, own_process=False
):
    """Runs `recipes/NAME.py` once whole and once killed right after checkpoints.

    The whole run is in this process, which is quicker. What TensorFlow computes here,
    with two devices and after other models, can differ in the last bit from what a new
    process does: where it shows, the whole run wants a process of its own, as users'.

    Returns:
        The run that was killed.
    """
    arguments = [*arguments, "--save_minutes", 0, "--no_export", "--output_dir"]
    whole, killed = folder / f"whole-{kills}", folder / f"killed-{kills}"
    script = [sys.executable, root / f"recipes/{name}.py", *arguments]
    command = [str(word) for word in [*script, killed]]
    environment = os.environ | {"PYTHONPATH": str(root)}
    if own_process:
        subprocess.run([*command[:-1], str(whole)], env=environment, check=True)
    else:
        assert recipe(name, *arguments, whole) == 0
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    pick, done = random.Random(kills), 0
    for _ in range(kills * 3):
        process = subprocess.Popen(command, env=environment, **silent)
        before = steps_written(killed)
        while process.poll() is None and steps_written(killed) == before:
            time.sleep(0.01)
        if kills > 1:
            time.sleep(pick.random() * 0.4)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        done += 1
        if done == kills:
            break
    assert done >= min(kills, 2), "the run ended before it was killed"
    final = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert final.returncode == 0, final.stderr
    assert "goes on from" in final.stdout
    expected, found = weights(whole), weights(killed)
    assert set(expected) == set(found)
    for path in expected:
        assert expected[path].tobytes() == found[path].tobytes(), path
    results = [
        json.loads((r / "eval/results.json").read_text()) for r in (whole, killed)
    ]
    assert results[0]["test"]["metrics"] == results[1]["test"]["metrics"]
    return killed
