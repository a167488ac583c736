"""Optimizers and learning-rate schedules, counted in optimizer steps."""

import keras
from keras import ops

# AdamW's decay shrinks weights that scale an input; shifting and scaling parameters
# (biases, norms) are left alone, as in BERT and GPT (Loshchilov & Hutter, 2019).
NO_DECAY = ("bias", "gamma", "beta", "scale")


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to `peak`, then a tail.

    Args:
        peak: Highest learning rate, reached after `warmup_steps` optimizer steps.
        total_steps: Optimizer steps of the whole run.
        warmup_steps: Steps of the linear rise from 0.
        kind: `linear` or `cosine` fall to 0 at `total_steps`, or `constant`.
    """

    def __init__(
        self, peak: float, total_steps: int, warmup_steps: int = 0, kind="linear"
    ):
        if kind not in ("linear", "cosine", "constant"):
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


def adamw(
    variables,
    *,
    learning_rate: float,
    total_steps: int,
    schedule: str = "linear",
    warmup_ratio: float = 0.0,
    weight_decay: float = 0.0,
) -> keras.optimizers.Optimizer:
    """A built AdamW over `variables`; its schedule counts optimizer steps."""
    warmup_steps = min(round(total_steps * warmup_ratio), total_steps - 1)
    optimizer = keras.optimizers.AdamW(
        Schedule(learning_rate, total_steps, max(0, warmup_steps), schedule),
        weight_decay=weight_decay,
        beta_2=0.999,
        epsilon=1e-8,
    )
    optimizer.exclude_from_weight_decay(
        [v for v in variables if v.path.rsplit("/", 1)[-1] in NO_DECAY]
    )
    optimizer.build(variables)
    return optimizer
