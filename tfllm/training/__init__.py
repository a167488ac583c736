"""Training through `model.fit`: the step, checkpoints, exact resume, the run folder."""
