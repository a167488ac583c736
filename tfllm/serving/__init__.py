"""From a trained model to TensorFlow Serving: export, check, the C API loader.

Only `export` imports TensorFlow; `c_api` and `check` must not.
"""
