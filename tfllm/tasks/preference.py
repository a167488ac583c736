"""Decoders learn which of two answers is the better one, without a reward model."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from tfllm.core.errors import UserError
from tfllm.core.files import atomic_write
from tfllm.data.chats import PairedColumns
from tfllm.tasks.causal_lm import CausalLM
from tfllm.tasks.task import Batch, Sums

OBJECTIVES = ("dpo", "orpo")
NEVER_SURE = -1e-6  # largest mean log-probability of a token that odds are taken of


@dataclass
class Preference(CausalLM):
    """Chosen answers become likelier than rejected ones.

    - `dpo` (Rafailov et al., 2023): an answer's reward is `beta` times how much its
      log-probability grew since training began; the loss is -log sigmoid(the chosen
      one's reward - the rejected one's).
    - `orpo` (Hong et al., 2024): the chosen answer's cross-entropy, and `beta` times
      -log sigmoid(log odds of the chosen - log odds of the rejected one), of the mean
      probability of a token. A reward is `beta` times the mean log-probability.

    Args:
        objective: `dpo` or `orpo`.
        beta: See above.
    """

    objective: str = "dpo"
    beta: float = 0.1

    name = "preference"
    rendered = True
    bounded = ("reward_accuracy", "reward_margin")
    about = (
        "Held-out pairs. reward_accuracy is the share of pairs whose chosen answer has "
        "the higher reward (a tie counts half), reward_margin the mean difference."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise UserError(f"--objective is one of {', '.join(OBJECTIVES)}")

    def parts(self, losses: Any, batch: Batch) -> dict[str, Any]:
        """What there is of each pair, `[rows]`.

        Returns:
            `margin` of the rewards; `preference`, its loss; `answer`, the sum of the
            chosen answer's losses, and `tokens`, their number; `chosen` and `rejected`,
            the answers' log-probabilities.
        """
        weights = ops.cast(batch["target_weights"], "float32")

        def sides(values):
            return ops.unstack(ops.reshape(values, (2, -1)), 2, axis=0)

        logs = -ops.sum(losses * weights, axis=1)
        count = ops.sum(weights, axis=1)
        mean = logs / ops.maximum(count, 1.0)
        if self.objective == "dpo":
            rewards = sides(self.beta * (logs - batch["reference"]))
            preference = ops.softplus(rewards[1] - rewards[0])
        else:
            rewards = sides(self.beta * mean)
            sure = ops.minimum(mean, NEVER_SURE)
            odds = sides(sure - ops.log(-ops.expm1(sure)))
            preference = self.beta * ops.softplus(odds[1] - odds[0])
        chosen, rejected = sides(logs)
        found = {"margin": rewards[0] - rewards[1], "preference": preference}
        found |= {"answer": -chosen, "tokens": sides(count)[0]}
        return found | {"chosen": chosen, "rejected": rejected}

    def loss_counts(self, batch: Batch) -> dict[str, Any]:
        """Pairs, and with ORPO the tokens of chosen answers."""
        counts = {"preference": ops.sum(self._weight(batch))}
        if self.objective == "orpo":
            rows = ops.shape(batch["weight"])[0] // 2
            counts["answer"] = ops.sum(batch["target_weights"][:rows])
        return counts

    def loss_sums(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Losses of the pairs, and with ORPO of the chosen answers."""
        parts = self.parts(outputs, batch)
        sums = {"preference": ops.sum(parts["preference"] * self._weight(batch))}
        if self.objective == "orpo":
            sums["answer"] = ops.sum(parts["answer"])
        return sums

    def metric_sums(self, outputs: Any, batch: Batch) -> Sums:
        """Reward margin and accuracy of training."""
        margin, weight = self.parts(outputs, batch)["margin"], self._weight(batch)
        hits, total = 0.5 + 0.5 * ops.sign(margin), ops.sum(weight)
        return {
            "reward_margin": (ops.sum(margin * weight), total),
            "reward_accuracy": (ops.sum(hits * weight), total),
        }

    def _weight(self, batch: Batch):
        return batch["weight"][: ops.shape(batch["weight"])[0] // 2]

    def row_sums(self, losses: np.ndarray, batch: Batch) -> np.ndarray:
        """All of `parts`, `[6, rows]`."""
        parts = self.parts(losses, batch).values()
        return np.stack([ops.convert_to_numpy(part) for part in parts])

    def metrics(self, columns, margin, preference, answer, tokens, *_) -> dict:
        """Numbers by name from pairs of what `scores` returns."""
        loss = preference.mean()
        if self.objective == "orpo":
            loss += answer.sum() / max(1.0, tokens.sum())
        hits = 0.5 + 0.5 * np.sign(margin)
        return {
            "loss": loss,
            "reward_accuracy": hits.mean(),
            "reward_margin": margin.mean(),
        }

    def refer(self, start: keras.Model, columns: Mapping[str, PairedColumns]) -> None:
        """Fills `reference` with what the model thinks before it is trained."""
        for part in columns.values():
            part.reference[:] = self.scores(start, part)[-2:]


def save_references(path: Path, columns: Mapping[str, PairedColumns]) -> None:
    """Keeps what `Preference.refer` found, so that a resumed run has the very same."""
    file = io.BytesIO()
    np.savez(file, **{name: part.reference for name, part in columns.items()})
    atomic_write(path, file.getvalue())


def read_references(path: Path, columns: Mapping[str, PairedColumns]) -> bool:
    """Fills `reference` from a file; whether there was one."""
    if not path.exists():
        return False
    found = np.load(path)
    for name, part in columns.items():
        part.reference[:] = found[name]
    return True
