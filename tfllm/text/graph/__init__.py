"""The parts of the in-graph engine; `graph_tf.py` puts them together."""
