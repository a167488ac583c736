"""Optimizers and learning-rate schedules, counted in optimizer steps."""

import fnmatch
import re
from collections.abc import Sequence

import keras
from keras import ops

from tfllm.core.errors import UserError

# AdamW's decay shrinks weights that scale an input; shifting and scaling parameters
# (biases, norms) are left alone, as in BERT and GPT (Loshchilov & Hutter, 2019).
NO_DECAY = ("bias", "gamma", "beta", "scale")
COOLDOWN = 0.2  # share of a run over which `wsd` falls


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to `peak`, then a tail.

    Args:
        peak: Highest learning rate, reached after `warmup_steps` optimizer steps.
        total_steps: Optimizer steps of the whole run.
        warmup_steps: Steps of the linear rise from 0.
        kind: `linear` or `cosine` fall to 0 at `total_steps`; `constant`;
            `inverse_sqrt` falls with the root of the step (Vaswani et al., 2017);
            `wsd` stays at the peak and falls linearly over the last fifth (Hu et al.,
            2024).
    """

    def __init__(
        self, peak: float, total_steps: int, warmup_steps: int = 0, kind="linear"
    ):
        if kind not in ("linear", "cosine", "constant", "inverse_sqrt", "wsd"):
            raise ValueError(f"Unknown schedule. Received: kind={kind!r}")
        self.peak, self.kind = peak, kind
        self.total_steps, self.warmup_steps = total_steps, warmup_steps

    def __call__(self, step):
        """Learning rate of the step that follows `step` finished ones."""
        step = ops.cast(step, "float32")
        # The first step already moves, the last one still does.
        rise = (step + 1) / max(1, self.warmup_steps)
        span = max(1, self.total_steps - self.warmup_steps)
        done = ops.clip((step - self.warmup_steps) / span, 0.0, 1.0)
        if self.kind == "linear":
            fall = 1.0 - done
        elif self.kind == "cosine":
            fall = 0.5 * (1.0 + ops.cos(3.141592653589793 * done))
        elif self.kind == "inverse_sqrt":
            fall = ops.rsqrt(ops.maximum(step + 1, 1.0) / max(1, self.warmup_steps))
            fall = ops.minimum(fall, 1.0)
        elif self.kind == "wsd":
            cooldown = max(1, round(COOLDOWN * self.total_steps))
            fall = ops.clip((self.total_steps - step) / cooldown, 0.0, 1.0)
        else:
            fall = ops.ones_like(done)
        return self.peak * ops.where(step < self.warmup_steps, rise, fall)

    def get_config(self):
        """The constructor's arguments."""
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "kind": self.kind,
        }


def make_optimizer(
    name: str,
    variables,
    *,
    learning_rate: float,
    total_steps: int,
    schedule: str = "linear",
    warmup_ratio: float = 0.0,
    weight_decay: float = 0.0,
) -> keras.optimizers.Optimizer:
    """A built optimizer over `variables`; its schedule counts optimizer steps.

    Args:
        name: `adamw`, `adafactor`, `lion`, `muon` or `sgd` (with momentum 0.9). Muon
            moves matrices; embeddings and vectors get AdamW, with the same learning
            rate (Liu et al., 2025, arXiv 2502.16982).
        variables: What is trained.
        learning_rate: Peak of the schedule.
        total_steps: Optimizer steps of the run.
        schedule: See `Schedule`.
        warmup_ratio: Share of the steps that warm up.
        weight_decay: Decoupled decay of all but biases and norms.
    """
    warmup_steps = max(0, min(round(total_steps * warmup_ratio), total_steps - 1))
    rate = Schedule(learning_rate, total_steps, warmup_steps, schedule)
    common = {"learning_rate": rate, "weight_decay": weight_decay}
    kinds = keras.optimizers
    if name == "adamw":
        optimizer = kinds.AdamW(**common, beta_2=0.999, epsilon=1e-8)
    elif name == "adafactor":
        optimizer = kinds.Adafactor(**common, relative_step=False)
    elif name == "lion":
        optimizer = kinds.Lion(**common)
    elif name == "muon":
        optimizer = kinds.Muon(**common, rms_rate=0.2, adam_lr_ratio=1.0)
    elif name == "sgd":
        optimizer = kinds.SGD(**common, momentum=0.9)
    else:
        raise ValueError(f"Unknown optimizer. Received: name={name!r}")
    optimizer.exclude_from_weight_decay(
        [v for v in variables if v.path.rsplit("/", 1)[-1] in NO_DECAY]
    )
    optimizer.build(variables)
    return optimizer


def freeze(model: keras.Model, patterns: Sequence[str]) -> None:
    """Leaves the weights whose path matches one of the patterns as they are.

    Args:
        model: A built model.
        patterns: As file names are matched: `token_embedding/*`, `block_[01]/*`.

    Raises:
        UserError: If a pattern matches nothing, or nothing is left to train.
    """
    for pattern in patterns:
        found = [v for v in model.weights if fnmatch.fnmatchcase(v.path, pattern)]
        if not found:
            tops = sorted({v.path.split("/")[0] for v in model.weights})
            raise UserError(
                f"--freeze {pattern} matches no weight",
                fix=f"Weights stand under {', '.join(tops)}; try '{tops[0]}/*'",
            )
        for variable in found:
            variable.trainable = False
    if not model.trainable_variables:
        raise UserError("--freeze leaves nothing to train")


def layer_rates(variables, decay: float) -> list[float]:
    """Factors of the learning rate: 1 at the top, `decay` times less a block down.

    Embeddings stand at the bottom, then the blocks by the number in their path, then
    everything else (Howard & Ruder, 2018, arXiv 1801.06146).
    """
    return [decay**height for height in _below_top(variables)]


def first_steps(variables, steps: float) -> list[int]:
    """The optimizer step at which each variable begins to move: gradual unfreezing.

    What stands above the blocks moves from the start, the last block after `steps`
    steps, and so on down to the embeddings (Howard & Ruder, 2018).
    """
    return [round(steps * height) for height in _below_top(variables)]


def _below_top(variables) -> list[int]:
    """How many blocks below the top each variable stands."""
    numbers = [re.search(r"(?:^|/)\D*_(\d+)/", v.path) for v in variables]
    top = max((int(n[1]) for n in numbers if n), default=-1) + 2

    def depth(variable, number):
        if "embedding" in variable.path:
            return 0
        return int(number[1]) + 1 if number else top

    return [
        top - depth(variable, number)
        for variable, number in zip(variables, numbers, strict=True)
    ]
