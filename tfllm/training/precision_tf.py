"""`--precision auto`: time a few steps of the real model and take the fastest."""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

WORTH = 0.9  # leave float32 and plain graphs only for a gain of over 10 %
SHORT_RUN = 45.0  # seconds; below it no timing pays
SOUND = 0.05  # the loss may differ by this share from float32's


@dataclass(frozen=True)
class Choice:
    """How the step computes.

    Attributes:
        precision: A Keras dtype policy.
        jit_compile: Whether XLA compiles the step.
        why: One line for the console.
    """

    precision: str
    jit_compile: bool
    why: str


@dataclass(frozen=True)
class Trial:
    """What a few steps took: seconds a step, seconds to compile, the last loss."""

    step_seconds: float
    compile_seconds: float
    loss: float


def choose(
    precision: str,
    jit_compile: str,
    total_steps: int,
    shapes: int,
    trial: Callable[[str, bool], Trial],
) -> Choice:
    """Chooses precision and XLA for a run.

    Args:
        precision: `auto` or a policy that is taken as it is.
        jit_compile: `auto`, `true` or `false`.
        total_steps: Optimizer steps of the run; compiling has to pay within it.
        shapes: Different batch shapes, each of which XLA compiles anew.
        trial: Runs a few steps of a fresh copy of the model.
    """
    precisions = ["float32", "mixed_bfloat16"] if precision == "auto" else [precision]
    compiled = {"auto": [False, True], "true": [True], "false": [False]}[jit_compile]
    candidates = [(p, x) for p in precisions for x in compiled]
    if len(candidates) == 1:
        return Choice(*candidates[0], "as asked for")
    base, *others = candidates
    tried = {base: trial(*base)}
    needed = total_steps * tried[base].step_seconds
    if needed < SHORT_RUN:
        return Choice(*base, f"a run of {needed:.0f} s is too short to time others")
    for candidate in others:
        try:
            tried[candidate] = trial(*candidate)
        except tf.errors.OpError:  # an op that XLA or this device does not have
            continue

    def seconds(candidate):
        took = tried[candidate]
        starts = took.compile_seconds * (shapes if candidate[1] else 1)
        return starts + total_steps * took.step_seconds

    def sound(candidate):
        loss, reference = tried[candidate].loss, tried[base].loss
        return math.isfinite(loss) and abs(loss - reference) <= SOUND * abs(reference)

    best = min(filter(sound, tried), key=seconds, default=base)
    if seconds(best) > WORTH * seconds(base):
        best = base
    told = ", ".join(
        f"{_name(c)} {1000 * t.step_seconds:.0f} ms"
        + ("" if sound(c) else " (unsound)")
        for c, t in tried.items()
    )
    return Choice(*best, f"a step took: {told}")


def _name(candidate: tuple[str, bool]) -> str:
    return candidate[0] + (" XLA" if candidate[1] else "")


@functools.cache
def peak_flops(precision: str) -> float:
    """Matrix-product speed of this device, FLOP/s, from a product of 1,536 squared."""
    dtype = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}.get(
        precision, "float32"
    )
    if dtype == "float16" and not tf.config.list_physical_devices("GPU"):
        dtype = "float32"  # CPUs emulate float16
    size, best = 1536, math.inf
    product = tf.function(lambda a, b: tf.matmul(a, b))
    a = tf.cast(tf.random.stateless_uniform([size, size], [1, 2]), dtype)
    product(a, a)
    for _ in range(5):
        started = time.perf_counter()
        product(a, a).numpy()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
