"""Made-up documents, each about one of four things."""

import numpy as np

TOPICS = {
    "sea": ["wave", "boat", "salt", "fish", "harbour", "sail"],
    "fire": ["flame", "smoke", "coal", "stove", "ash", "spark"],
    "field": ["wheat", "plough", "barn", "seed", "hay", "cow"],
    "town": ["street", "shop", "tower", "bridge", "market", "bell"],
}
PLAIN = "the a was near and under old new of it by with".split()


def stories(count: int, seed: int = 0) -> list[str]:
    """Texts of 3 to 8 sentences; half of the words are of the story's topic."""
    draw = np.random.default_rng(seed)
    return [_story(draw) for _ in range(count)]


def _story(draw) -> str:
    words, sentences = TOPICS[list(TOPICS)[draw.integers(len(TOPICS))]], []
    for _ in range(draw.integers(3, 9)):
        kinds = [
            words if draw.random() < 0.5 else PLAIN for _ in range(draw.integers(4, 9))
        ]
        sentences.append(" ".join(map(draw.choice, kinds)).capitalize() + ".")
    return " ".join(sentences)
