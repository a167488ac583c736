"""Raw text to token ids: cleaning, and one tokenizer with two equal engines."""

from tfllm.text.cleaning import Cleaning
from tfllm.text.tokenizer import Tokenizer

__all__ = ["Cleaning", "Tokenizer"]
