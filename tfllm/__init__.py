"""tfllm: from raw text to a language model behind TensorFlow Serving."""

__version__ = "0.1.0"
