"""Text from a decoder: cache, decoding loop, sampling, beam search, streaming."""
