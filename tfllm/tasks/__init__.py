"""One module a job: features, loss, metrics, answers, serving signatures."""
