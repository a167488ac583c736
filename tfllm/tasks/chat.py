"""Decoders learn to answer: the tokens of an assistant's turns are the targets."""

from dataclasses import dataclass

from tfllm.tasks.causal_lm import CausalLM


@dataclass
class Chat(CausalLM):
    """Fine-tuning on conversations, which `data.chats.encode_chats` makes columns of.

    Args:
        loss_on: What of a conversation is learned, for the record.
    """

    loss_on: str = "answers"

    name = "chat"
    packs = True
    rendered = True
    about = "Held-out conversations; perplexity and loss are those of a learned token."
    answer_metrics = ("rougeL", "chrf", "exact_match")
