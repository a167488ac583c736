"""Checkpoints of others: `open_checkpoint` reads one, `save_hf` writes one."""

from tfllm.models.pretrained.checkpoint import Checkpoint, open_checkpoint
from tfllm.models.pretrained.save import save_hf

__all__ = ["Checkpoint", "open_checkpoint", "save_hf"]
