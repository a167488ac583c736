"""The flags that every recipe shares, with the same meaning everywhere."""

from dataclasses import dataclass

from tfllm.config import flag


@dataclass
class RunFlags:
    """Where a run is written, and how it goes on."""

    output_dir: str | None = flag(
        None, "the run's directory; without it runs/<recipe>/<time>-<name>"
    )
    resume: str = flag(
        "auto", "auto (what lies in --output_dir), never, or a run's directory"
    )
    export_name: str | None = flag(
        None, "name of the export in saved_models/; without it the run's name"
    )
    export: bool = flag(True, "do not export the model for TensorFlow Serving")
    dry_run: bool = flag(
        False, "check the data, time three steps, say what to change; write nothing"
    )


@dataclass
class TrainingFlags:
    """How the model is trained."""

    batch_size: int | None = flag(None, "rows of a batch on each device", minimum=1)
    tokens_per_batch: int | None = flag(
        None,
        "instead: positions of a batch on each device, so that short texts make "
        "larger batches",
        minimum=1,
    )
    packing: bool = flag(False, "put several texts into one row (where supported)")
    epochs: int | None = flag(None, "times the data are seen", minimum=1)
    max_steps: int | None = flag(None, "stop after so many optimizer steps", minimum=1)
    learning_rate: float | None = flag(None, "peak of the schedule", minimum=0.0)
    optimizer: str | None = flag(
        None,
        "what moves the weights (adamw)",
        choices=["adamw", "adafactor", "lion", "muon", "sgd"],
    )
    schedule: str | None = flag(
        None,
        "tail after the warm-up",
        choices=["linear", "cosine", "constant", "inverse_sqrt", "wsd"],
    )
    warmup_ratio: float | None = flag(
        None, "share of the steps that warm up", minimum=0.0, maximum=1.0
    )
    weight_decay: float | None = flag(
        None, "decoupled decay, off norms and biases", minimum=0.0
    )
    layer_decay: float = flag(
        1.0,
        "the learning rate of each block is this times that of the one above",
        minimum=0.01,
        maximum=1.0,
    )
    freeze: list[str] = flag(
        [], "weights that stay as they are, by path: 'token_embedding/*' 'block_0/*'"
    )
    gradient_accumulation_steps: int = flag(
        1, "micro-batches of one optimizer step", minimum=1
    )
    clip_norm: float = flag(
        1.0, "largest global norm of the gradient; 0: no clipping", minimum=0.0
    )
    label_smoothing: float | None = flag(
        None, "share of the target spread over all classes", minimum=0.0, maximum=0.9
    )
    dropout: float | None = flag(None, "dropout rate", minimum=0.0, maximum=0.95)
    l2: float | None = flag(None, "weight of an L2 penalty in the loss", minimum=0.0)
    ema_decay: float | None = flag(
        None,
        "moving average of the weights, used in evaluation; 0: none",
        minimum=0.0,
        maximum=0.99999,
    )
    adversarial: float | None = flag(
        None,
        "train on worst-case token vectors too (Miyato et al., 2017): how far a text "
        "is pushed, in lengths of a vector; a step takes twice as long",
        minimum=0.0,
    )
    gradient_checkpointing: bool = flag(
        False,
        "compute Transformer blocks again on the way back: less memory, more time",
    )
    precision: str = flag(
        "auto",
        "auto times a few steps and takes the fastest that is sound",
        choices=["auto", "float32", "mixed_bfloat16", "mixed_float16"],
    )
    jit_compile: str = flag(
        "auto", "compile the step with XLA", choices=["auto", "true", "false"]
    )
    strategy: str = flag(
        "one", "devices to train on", choices=["one", "mirrored", "multi_worker"]
    )
    seed: int = flag(0, "of weights, order and dropout", minimum=0)
    patience: int | None = flag(
        None, "stop after so many evaluations without a better score", minimum=1
    )
    eval_steps: int | None = flag(
        None, "evaluate every so many steps; without it once an epoch", minimum=1
    )
    save_minutes: float = flag(
        5.0, "a checkpoint at each evaluation and every so many minutes", minimum=0.0
    )
    keep_checkpoints: int = flag(2, "last checkpoints kept beside the best", minimum=1)
    log_steps: int = flag(10, "log every so many steps", minimum=1)
    max_bad_steps: int = flag(
        20, "stop after so many steps in a row that were not finite", minimum=1
    )
    bucketing: bool = flag(True, "do not put texts of equal length together")


@dataclass
class FineTuningFlags:
    """How a model that was trained before is trained on."""

    from_scratch: bool = flag(
        False, "take the model's shape and tokenizer, not its weights: to compare with"
    )
    lora_rank: int = flag(
        0, "train low-rank adapters of this rank and the head alone", minimum=0
    )
    lora_alpha: float | None = flag(
        None, "scale of the adapters times their rank; twice the rank", minimum=0.0
    )
    lora_dropout: float = flag(
        0.0, "dropout before the adapters", minimum=0.0, maximum=0.9
    )
    lora_targets: list[str] = flag(
        ["*"], "layers of the blocks that get one: 'query' 'value'; all when absent"
    )
    unfreeze_epochs: float = flag(
        0.0,
        "the head alone first, then a block more from the top each so many epochs",
        minimum=0.0,
    )

    def adapters(self) -> dict | None:
        """What `layers.lora.add_adapters` takes, or None."""
        if not self.lora_rank:
            return None
        names = ("rank", "alpha", "dropout", "targets")
        return {name: getattr(self, f"lora_{name}") for name in names}
