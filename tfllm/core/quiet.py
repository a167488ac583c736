"""TensorFlow's import, without the lines that no user can act on."""

import logging
import os
import sys
import tempfile


def load_tensorflow() -> None:
    """Imports TensorFlow with its start-up chatter held back.

    XLA's and CUDA's registration lines go straight to file descriptor 2, whatever the
    log level. They are shown only if the import fails. Keras traces its prediction
    functions anew for the first few batch shapes, which TensorFlow warns of.
    """
    if "tensorflow" in sys.modules or os.environ.get("KERAS_BACKEND") == "jax":
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("tensorflow").addFilter(
        lambda record: "triggered tf.function retracing" not in record.getMessage()
    )
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import keras  # noqa: F401
            import tensorflow as tf

            # Several workers must be joined before the devices are made.
            if "TF_CONFIG" not in os.environ:
                tf.config.list_logical_devices()
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
