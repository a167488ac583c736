"""Files to batches: readers, the doctor, samples, the token cache, batch plans."""
