"""Runs `fit` over a plan of batches: logging, evaluation, checkpoints, exact resume."""

import contextlib
import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfllm.config import to_yaml
from tfllm.core.console import note, table
from tfllm.core.errors import UserError
from tfllm.data.batching import BatchPlan
from tfllm.data.columns import Columns
from tfllm.data.pipeline_tf import dataset
from tfllm.layers.recompute import recompute
from tfllm.layers.transformer_block import TransformerBlock
from tfllm.models.weights import matrix_parameters, set_weights, weights_of
from tfllm.tasks.task import Task
from tfllm.training import precision_tf
from tfllm.training.checkpoints import Checkpoints, read
from tfllm.training.distribution_tf import (
    LOST,
    PartOfPlan,
    chiefs_values,
    make_strategy,
)
from tfllm.training.interrupts import interrupts
from tfllm.training.logs import Progress, StepLog
from tfllm.training.optimizers import (
    first_steps,
    freeze,
    layer_rates,
    make_optimizer,
)
from tfllm.training.run import RunDirectory, worker_number
from tfllm.training.speed_tf import speed_up
from tfllm.training.step_tf import TrainingModel
from tfllm.training.tensorboard_tf import TensorBoard

PICTURES_SECONDS = 30.0  # pictures in TensorBoard are not drawn more often


@dataclass
class State:
    """What training knows beside its variables; part of every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best_score: float | None = None
    best_step: int = 0
    since_best: int = 0
    bad_in_row: int = 0
    bad_steps: int = 0
    done: bool = False
    validation: dict = field(default_factory=dict)


class Trainer:
    """Trains a task's model on columns.

    Args:
        task: See `tasks.task.Task`.
        config: A dataclass with the fields of `TrainingFlags`, none of them `None`
            but `max_steps`, `patience` and `eval_steps`.
        run: The run directory; made here on the first write.
        train: Training examples.
        validation: Held-out examples, or `None`.
        prepare: Called with a fresh model, to fill weights before training.
    """

    def __init__(
        self,
        task: Task,
        config,
        run: RunDirectory,
        train: Columns,
        validation: Columns | None = None,
        prepare: Callable[[keras.Model], None] = lambda model: None,
    ):
        self.task, self.config, self.run = task, config, run
        self.train, self.validation, self.prepare = train, validation, prepare
        self.strategy = make_strategy(config.strategy)
        self.worker = worker_number() if config.strategy == "multi_worker" else 0
        if config.packing and not getattr(task, "packs", False):
            raise UserError(f"--packing does not go with {task.name}")
        replicas = self.strategy.num_replicas_in_sync if self.strategy else 1
        parts = replicas * config.gradient_accumulation_steps
        if config.tokens_per_batch:
            size = {"tokens_per_batch": config.tokens_per_batch * parts}
        else:
            size = {"batch_size": config.batch_size * parts}
        self.plan = BatchPlan(
            train.lengths,
            **size,
            max_length=task.max_length,
            seed=config.seed,
            bucketing=config.bucketing,
            packing=config.packing,
            parts=parts,
            early_epochs=getattr(config, "lead_epochs", 0),
        )
        epochs = self.plan.steps_per_epoch * config.epochs
        self.total_steps = min(epochs, config.max_steps or epochs)
        self.eval_steps = config.eval_steps or self.plan.steps_per_epoch
        self.state = State()
        self.stopped = False  # by a signal, after a step

    def settle(self):
        """Settles `--precision auto` and `--jit_compile auto` on this machine.

        Returns:
            The configuration with what was chosen; training uses it from here on.
        """
        choice = self._choose()
        compiled = str(choice.jit_compile).lower()
        note(f"precision {choice.precision}, XLA {compiled}: {choice.why}")
        self.config = dataclasses.replace(
            self.config, precision=choice.precision, jit_compile=compiled
        )
        return self.config

    def begin(self, files: list[dict], report=None):
        """Settles what is open and writes what a new run begins with.

        Args:
            files: `path`, `sha256` and `rows` of the data files.
            report: What the data are like, as `RunDirectory.write_start` takes it.

        Returns:
            The configuration as `settle` leaves it.
        """
        config = self.settle()
        note(to_yaml(config))
        self.run.write_start(config, files, report)
        self.task.tokenizer.save(self.run.path / "tokenizer")
        return config

    def _choose(self) -> precision_tf.Choice:
        precision, compiled = self.config.precision, self.config.jit_compile
        if self.strategy and compiled == "auto":
            compiled = "false"
        if self.config.strategy == "multi_worker" and precision == "auto":
            precision = "float32"  # all must come to the same choice
        return precision_tf.choose(
            precision,
            compiled,
            self.total_steps,
            len(self.plan.shapes),
            self._trial,
        )

    def fit(self) -> State:
        """Trains to the end, or to the first of Ctrl-C, patience and `max_steps`.

        Afterwards the weights of the best validation score (without validation data:
        the last ones) lie in `checkpoints/best`.

        Raises:
            KeyboardInterrupt: After Ctrl-C or SIGTERM, when a checkpoint is written.
            SystemExit: With status 0, at the end of every worker but the chief.
            UserError: When too many steps in a row were not finite, the disk or the
                memory is full, or a worker is lost.
        """
        config, state = self.config, self.state
        model = self._build(config.precision, config.jit_compile == "true")
        self.model, self.core = model, model.core
        self._judge = self._make_judge()
        self.describe()
        checkpoints = Checkpoints(self.run.checkpoints, config.keep_checkpoints)
        self.checkpoints = checkpoints
        self._restore(checkpoints)
        if state.done:
            return self._end()
        log = StepLog(
            self.run.path / "metrics.jsonl",
            config.log_steps,
            state.step,
            6 * matrix_parameters(self.core),
            precision_tf.peak_flops(config.precision),
        )
        board = TensorBoard(self.run.path / "tensorboard")
        if state.step == 0:
            board.graph(self._judge)
        loop = _Loop(self, log, board)
        try:
            with interrupts(model), self._told(checkpoints):
                while state.step < self.total_steps and not state.done:
                    epoch, offset = divmod(state.step, self.plan.steps_per_epoch)
                    rest = self.total_steps - state.step
                    steps = min(self.plan.steps_per_epoch - offset, rest)
                    model.fit(
                        self._dataset(state.step, state.step + steps),
                        initial_epoch=epoch,
                        epochs=epoch + 1,
                        steps_per_epoch=steps,
                        callbacks=[loop],
                        shuffle=False,
                        verbose=0,
                    )
                    if self.stopped:
                        break
        finally:
            loop.close()
            board.close()
        if self.stopped or model.stop:
            path = self.save()
            note(
                f"stopped at step {state.step}" + (f"; checkpoint {path}" * bool(path))
            )
            raise KeyboardInterrupt
        state.done = True
        if state.best_score is None:
            self._save_best()
        self.save()
        return self._end()

    def evaluate(self):
        """The task's verdict on the validation data with the current weights."""
        self._sync_judge()
        return self.task.validate(self._judge, self.validation)

    def save(self) -> Path | None:
        """Writes `step-NNNNNN` with everything that training goes on from.

        Only the chief does; it returns `None` on other workers.
        """
        if self.worker:
            return None
        return self.checkpoints.save(
            f"step-{self.state.step:06d}",
            weights=weights_of(self.core),
            training={n: v.numpy() for n, v in self._training_variables().items()},
            state=vars(self.state),
            config=self.task.to_config(),
        )

    def _save_best(self) -> None:
        if self.worker:
            return
        self._sync_judge()
        weights = weights_of(self._judge)
        trained = [v.path for v in self.core.trainable_variables]
        adapted = any(path.endswith("/lora_a") for path in trained)
        self.checkpoints.save(
            "best",
            weights=weights,
            adapters={path: weights[path] for path in trained} if adapted else None,
            state=vars(self.state),
            config=self.task.to_config(),
        )

    def dry_run(self) -> int:
        """Says what training would take, from a few timed steps; writes nothing."""
        choice = self._choose()
        trial = self._trial(choice.precision, choice.jit_compile)
        plan, step = self.plan, trial.step_seconds
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
        shapes = ", ".join(f"{rows} x {length}" for rows, length in plan.shapes)
        figures = {
            "precision": f"{choice.precision} ({choice.why})",
            "XLA": str(choice.jit_compile).lower(),
            "steps an epoch": plan.steps_per_epoch,
            "milliseconds a step": 1000 * step,
            "minutes an epoch": step * plan.steps_per_epoch / 60,
            "minutes in all": step * self.total_steps / 60,
            "peak memory, GB": peak,
            "padding share": f"{plan.padding_share:.1%}",
            "batch shapes": shapes,
        }
        table("Dry run", ["", "value"], figures.items())
        hints = []
        if plan.padding_share > 0.3 and self.config.bucketing is False:
            hints.append("drop --no_bucketing: much of each batch is padding")
        if step * self.total_steps > 3600:
            hints.append("a smaller --max_length, fewer --epochs or a smaller model")
        if plan.steps_per_epoch < 20:
            hints.append("a smaller --batch_size: an epoch has very few steps")
        note("To change: " + ("; ".join(hints) if hints else "nothing stands out."))
        return 0

    def describe(self) -> None:
        """Says how large the model is and how the batches are cut."""
        matrices = matrix_parameters(self.core)
        count = sum(int(np.prod(v.shape)) for v in self.core.weights)
        note(
            f"{count:,} parameters, {6 * matrices:,} FLOPs a token of training; "
            f"{self.plan.steps_per_epoch:,} steps an epoch, {self.total_steps:,} in "
            f"all, {self.plan.padding_share:.1%} padding"
        )

    def summarise(self, results: dict, vectors=None) -> None:
        """Leaves the run's settings, figures and vectors in TensorBoard.

        Args:
            results: What `eval/results.json` holds.
            vectors: Of texts `[N, size]`, and the texts; the tokens' when absent.
        """
        board = TensorBoard(self.run.path / "tensorboard")
        board.hparams(vars(self.config), results["test"]["metrics"])
        named = [v for v in self._judge.weights if v.path.endswith("embeddings")]
        tokens = self.task.tokenizer.tokens
        if vectors is not None:
            board.projector(*vectors)
            named = []
        for variable in named[:1]:
            if len(variable.shape) == 2 and variable.shape[0] == len(tokens):
                board.projector(variable.numpy(), tokens)
        board.close()

    def untrained(self) -> keras.Model:
        """The model as it was before training, float32."""
        keras.utils.set_random_seed(self.config.seed)
        model = self.task.build_model("float32")
        self.prepare(model)
        return model

    def agreed(self, values: list[float]) -> list[float]:
        """The chief's `values`, on every worker."""
        many = self.config.strategy == "multi_worker"
        return chiefs_values(self.strategy, values) if many else values

    # The rest is how it is done.

    def _end(self) -> State:
        if self.worker:
            note(f"worker {self.worker} is done; the chief evaluates and exports")
            raise SystemExit(0)
        return self.state

    @contextlib.contextmanager
    def _told(self, checkpoints: Checkpoints):
        """Says in one line what ended a run from outside, and what it goes on from."""
        try:
            yield
        except OSError as error:
            raise checkpoints.failure(error, error.filename) from None
        except KeyboardInterrupt:
            note(f"stopped at once; goes on from {next(checkpoints.good(), 'step 0')}")
            raise
        except tf.errors.ResourceExhaustedError as error:
            raise UserError(
                f"out of memory at step {self.state.step}: {_first_line(error)}",
                fix="Try a smaller --batch_size with --gradient_accumulation_steps",
            ) from None
        except LOST as error:
            if self.config.strategy != "multi_worker":
                raise
            last = next(checkpoints.good(), None)
            raise UserError(
                f"a worker was lost after step {self.state.step}: {_first_line(error)}",
                fix="Start every worker again with the same flags; they go on from "
                f"{last or 'the beginning'}",
            ) from None

    def _build(self, precision: str, jit_compile: bool) -> TrainingModel:
        config = self.config
        # The same seed gives the same weights, masks and order, bit for bit.
        keras.utils.set_random_seed(config.seed)
        tf.config.experimental.enable_op_determinism()
        scope = self.strategy.scope() if self.strategy else contextlib.nullcontext()
        with scope:
            core = self.task.build_model(precision)
            self.prepare(core)
            freeze(core, config.freeze)
            speed_up(core)
            if config.gradient_checkpointing:
                for layer in core._flatten_layers():
                    if isinstance(layer, TransformerBlock):
                        recompute(layer)
            optimizer = make_optimizer(
                config.optimizer or "adamw",
                core.trainable_variables,
                learning_rate=config.learning_rate,
                total_steps=self.total_steps,
                schedule=config.schedule,
                warmup_ratio=config.warmup_ratio,
                weight_decay=config.weight_decay,
            )
        return TrainingModel(
            core,
            self.task,
            optimizer,
            micro_batches=config.gradient_accumulation_steps,
            clip_norm=config.clip_norm,
            rates=layer_rates(core.trainable_variables, config.layer_decay),
            starts=first_steps(
                core.trainable_variables,
                getattr(config, "unfreeze_epochs", 0) * self.plan.steps_per_epoch,
            ),
            ema_decay=config.ema_decay,
            adversarial=config.adversarial or 0.0,
            mixup=getattr(config, "mixup", 0.0),
            seed=config.seed,
            jit_compile=jit_compile,
            strategy=self.strategy,
        )

    def _dataset(self, start: int, stop: int):
        transform = getattr(self.task, "transform", None)

        def batches(plan, workers=1, worker=0):
            # The part of the whole plan, whichever worker has it.
            def transformed(batch, step, part):
                return transform(batch, step, part * workers + worker)

            return dataset(
                self.train,
                plan,
                start_step=start,
                stop_step=stop,
                pad_values=self.task.pad_values(),
                transform=transform and transformed,
            )

        def of_worker(context):
            share = context.num_input_pipelines, context.input_pipeline_id
            return batches(PartOfPlan(self.plan, *share), *share)

        if self.strategy is None:
            return batches(self.plan)
        return self.strategy.distribute_datasets_from_function(of_worker)

    def _trial(self, precision: str, jit_compile: bool) -> precision_tf.Trial:
        """A few steps of a fresh copy, on one batch of the commonest shape."""
        model = self._build(precision, jit_compile)
        model.part_random_states()
        model.make_train_function()
        middle = self.plan.steps_per_epoch // 2
        batch = list(self._dataset(middle, middle + 1))
        stream = iter(lambda: batch[0], None)

        def run() -> tuple[float, float]:
            started = time.perf_counter()
            logs = model.train_function(stream)
            loss = float(logs["loss"])
            return time.perf_counter() - started, loss

        compile_seconds, _ = run()
        times, losses = zip(*(run() for _ in range(4)), strict=True)
        return precision_tf.Trial(float(np.median(times)), compile_seconds, losses[-1])

    def _make_judge(self) -> keras.Model:
        """The model that is evaluated: always float32, averaged weights if asked."""
        plain = self.config.precision == "float32" and not self.config.ema_decay
        if plain and self.strategy is None:
            return self.core
        return self.task.build_model("float32")

    def _sync_judge(self) -> None:
        if self._judge is self.core:
            return
        values = weights_of(self.core)
        for variable, ema in zip(
            self.core.trainable_variables, self.model.ema, strict=True
        ):
            if ema is not None:
                values[variable.path] = ema.numpy()
        set_weights(self._judge, values)

    def _training_variables(self) -> dict:
        """All variables but the weights: optimizer, random states, averages."""
        groups = {
            "optimizer": self.model.optimizer.variables,
            "random": self.model.random_variables,
        }
        named = {
            f"{g}/{i}": v for g, all_ in groups.items() for i, v in enumerate(all_)
        }
        return {n: v.value for n, v in named.items()} | self.model.extra_variables

    def _restore(self, checkpoints: Checkpoints) -> None:
        if not self.worker:
            checkpoints.tidy()
        path = next(checkpoints.good(), None)
        if path is not None:
            self._read(path)
        self.model.part_random_states()
        chief = self.agreed([self.state.step])[0]
        if chief != self.state.step:
            raise UserError(
                f"the chief goes on from step {chief:.0f}, worker {self.worker} from "
                f"{self.state.step}",
                self.run.checkpoints,
                "--output_dir must lie on a file system that all workers share",
            )

    def _read(self, path: Path) -> None:
        weights, training, state = read(path)
        set_weights(self.core, weights, path)
        variables = self._training_variables()
        if set(variables) != set(training):
            raise UserError(
                "the checkpoint does not fit these flags",
                path,
                "Start another run with another --output_dir",
            )
        for name, variable in variables.items():
            if tuple(variable.shape) != training[name].shape:
                raise UserError("the checkpoint does not fit these flags", path)
            variable.assign(training[name])
        vars(self.state).update(state)
        note(f"goes on from {path}")


class _Loop(keras.callbacks.Callback):
    """What happens between the steps."""

    def __init__(self, trainer: Trainer, log: StepLog, board: TensorBoard):
        super().__init__()
        self.trainer, self.log, self.board = trainer, log, board
        self.progress = Progress(trainer.total_steps, trainer.state.step)
        self.saved = self.last = time.monotonic()
        self.drawn = -PICTURES_SECONDS

    def on_train_begin(self, logs=None):
        self.log.restart_clock()

    def on_train_batch_end(self, batch, logs=None):
        trainer, state, config = self.trainer, self.trainer.state, self.trainer.config
        state.step += 1
        now = time.monotonic()
        state.seconds, self.last = state.seconds + now - self.last, now
        logs = {name: float(value) for name, value in logs.items()}
        # Here or on another worker was a signal: all stop after the same step.
        trainer.stopped = logs["stop"] > 0
        self._count_bad(logs, state, config)
        row = self.log.step(state.step, logs, trainer.model.data_seconds)
        self.progress.step(state.step)
        if row is not None:
            self.board.scalars(state.step, row, "train")
            self.progress.row(row)
        last = state.step == trainer.total_steps
        if trainer.validation is not None and (
            last or state.step % trainer.eval_steps == 0
        ):
            self._evaluate(state, config, last)
            trainer.save()
            self.saved = time.monotonic()
        elif self.saved + 60 * config.save_minutes < now:
            trainer.save()
            self.saved = time.monotonic()
        else:
            return self._stop_if(trainer.stopped)
        self.log.restart_clock()
        return self._stop_if(state.done or trainer.stopped)

    def close(self):
        """Takes the progress bar away."""
        self.progress.close()

    def _stop_if(self, stop: bool) -> None:
        if stop:
            self.model.stop_training = True

    def _count_bad(self, logs: dict, state: State, config) -> None:
        if not logs["bad_step"]:
            state.bad_in_row = 0
            return
        state.bad_in_row += 1
        state.bad_steps += 1
        self.progress.say(
            f"step {state.step}: the gradient was not finite; the step was skipped"
        )
        if state.bad_in_row >= config.max_bad_steps:
            raise UserError(
                f"{state.bad_in_row} steps in a row were not finite",
                f"step {state.step}",
                "Try a smaller --learning_rate, a longer --warmup_ratio or "
                "--precision float32",
            )

    def _evaluate(self, state: State, config, last: bool) -> None:
        trainer, task = self.trainer, self.trainer.task
        verdict = trainer.evaluate()
        # The chief's figures decide on every worker.
        figures = trainer.agreed(list(verdict.metrics.values()))
        metrics = dict(zip(verdict.metrics, figures, strict=True))
        score = metrics[task.monitor]
        # Of equal scores the later one: the learning rate was lower. But it is none the
        # better for it, and patience runs out.
        best = score if state.best_score is None else state.best_score
        better = score >= best if task.maximize else score <= best
        improved = state.best_score is None or (better and score != best)
        state.since_best = 0 if improved else state.since_best + 1
        state.validation = metrics
        patience = config.patience
        state.done = patience is not None and state.since_best >= patience
        if better:
            state.best_score, state.best_step = score, state.step
            trainer._save_best()
        self.log.write({"step": state.step} | _prefixed(metrics))
        self.board.scalars(state.step, metrics, "validation")
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        mark = "  (best)" if better else ""
        epoch = state.step / trainer.plan.steps_per_epoch
        self.progress.say(f"epoch {epoch:.3g}, step {state.step}: {shown}{mark}")
        if state.done:
            self.progress.say(f"no better score for {patience} evaluations: stopping")
        if last or state.done or time.monotonic() - self.drawn > PICTURES_SECONDS:
            self.drawn = time.monotonic()
            self.board.images(state.step, verdict.pictures())
            self.board.texts(state.step, verdict.texts())


def _prefixed(metrics: dict) -> dict:
    return {f"validation_{name}": value for name, value in metrics.items()}


def _first_line(error: tf.errors.OpError) -> str:
    lines = [line for line in error.message.splitlines() if line.strip()]
    told = [line for line in lines if "aborted" in line or "OOM" in line]
    return (told or lines or [""])[0].strip()[:200]
