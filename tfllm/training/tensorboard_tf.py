"""What TensorBoard shows of a run."""

import json
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

MOST_VECTORS = 10_000  # the projector's page gets slow beyond


class TensorBoard:
    """Writes a run's `tensorboard/` folder.

    Steps are optimizer steps of the whole run, so that a resumed run goes on where it
    stopped; Keras' own callback starts at 0 again and logs the learning rate once an
    epoch.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.writer = tf.summary.create_file_writer(str(directory))

    def scalars(self, step: int, values: dict, group: str) -> None:
        """Logs numbers as `group/name`."""
        with self.writer.as_default(step):
            for name, value in values.items():
                if name != "step" and isinstance(value, int | float):
                    tf.summary.scalar(f"{group}/{name}", value)

    def images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Logs pictures `[height, width, 3]`, uint8."""
        with self.writer.as_default(step):
            for name, pixels in images.items():
                tf.summary.image(name, pixels[None])

    def texts(self, step: int, texts: dict[str, str]) -> None:
        """Logs Markdown."""
        with self.writer.as_default(step):
            for name, text in texts.items():
                tf.summary.text(name, text)

    def graph(self, model: keras.Model) -> None:
        """Logs the model's graph."""
        signature = {
            tensor.name: tf.TensorSpec([None, None], tensor.dtype)
            for tensor in model.inputs
        }
        traced = tf.function(lambda batch: model(batch, training=False))
        with self.writer.as_default(0):
            tf.summary.graph(traced.get_concrete_function(signature).graph)

    def hparams(self, settings: dict, metrics: dict[str, float]) -> None:
        """Logs a configuration with the figures that it reached."""
        from tensorboard.plugins.hparams import api

        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
            if value is not None and value != []
        }
        with self.writer.as_default(0):
            api.hparams(plain, trial_id=self.directory.parent.name)
            for name, value in metrics.items():
                tf.summary.scalar(f"hparams/{name}", value)

    def projector(self, vectors: np.ndarray, names: Sequence[str]) -> None:
        """Writes vectors `[n, size]` and their names for the embedding projector."""
        vectors, names = vectors[:MOST_VECTORS], names[:MOST_VECTORS]
        folder = self.directory
        np.savetxt(folder / "vectors.tsv", vectors, fmt="%.5g", delimiter="\t")
        # A token may be a tab or a line break; JSON's escapes keep a line a token.
        lines = [json.dumps(name, ensure_ascii=False)[1:-1] or "·" for name in names]
        (folder / "tokens.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "projector_config.pbtxt").write_text(
            'embeddings {\n  tensor_name: "tokens"\n  tensor_path: "vectors.tsv"\n'
            '  metadata_path: "tokens.tsv"\n}\n'
        )

    def close(self) -> None:
        """Writes what is pending."""
        self.writer.close()
