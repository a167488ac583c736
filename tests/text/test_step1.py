"""Characters and words: the two engines agree."""

from tfllm.text import Cleaning, Tokenizer

TEXTS = ["The cat can't sit.", "今天天气很好，hello 世界", "", "a\x00b\u200d", "don’t"]


def test_engines_agree(tmp_path):
    for kind in ("characters", "words"):
        for texts in (TEXTS, TEXTS[:1]):
            made = Tokenizer.train(texts, kind, 200, cleaning=Cleaning(unicode=None))
            made.save(tmp_path)
            loaded = Tokenizer.load(tmp_path)
            assert loaded.fingerprint == made.fingerprint
            assert loaded.kind == kind
            graph = loaded.graph()
            assert graph.encode(TEXTS).to_list() == loaded.encode(TEXTS)
            for length in (3, 8, 100):
                ids, segments = graph.encode_pairs(TEXTS, TEXTS[::-1], length)
                pairs = loaded.encode_pairs(TEXTS, TEXTS[::-1], length)
                assert (ids.to_list(), segments.to_list()) == pairs
            ids = loaded.encode(TEXTS, add_special_tokens=True, max_length=5)
            assert graph.encode(TEXTS, True, 5).to_list() == ids
            texts = [t.decode() for t in graph.decode(graph.encode(TEXTS)).numpy()]
            assert texts == loaded.decode(loaded.encode(TEXTS))
            ids, starts, ends = graph.encode_with_offsets(TEXTS)
            ids, offsets = loaded.encode_with_offsets(TEXTS)
            pairs = [
                list(zip(*row, strict=True))
                for row in zip(starts.to_list(), ends.to_list(), strict=True)
            ]
            assert pairs == offsets
