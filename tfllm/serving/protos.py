"""The messages of a SavedModel and of warm-up records, without importing TensorFlow.

TensorBoard, which is installed with TensorFlow, carries most of TensorFlow's messages.
Those of `saved_model.proto` and of TensorFlow Serving's `prediction_log.proto` are
declared here, as far as they are used and alike on the wire: there a map is a repeated
message of key and value, and a message in a message is a field of bytes.
"""

import functools
import itertools

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorboard.compat.proto import meta_graph_pb2

_DECLARED = {  # message → field → number and type
    "SavedModel": {"meta_graphs": (2, ["tensorboard.MetaGraphDef"])},
    "ModelSpec": {"name": (1, "string"), "signature_name": (3, "string")},
    "Inputs": {"key": (1, "string"), "value": (2, "bytes")},
    "PredictRequest": {
        "model_spec": (1, "tfllm.ModelSpec"),
        "inputs": (2, ["tfllm.Inputs"]),
    },
    "PredictLog": {"request": (1, "tfllm.PredictRequest")},
    "ExampleList": {"examples": (1, ["bytes"])},
    "Input": {"example_list": (1, "tfllm.ExampleList")},
    "ExampleRequest": {
        "model_spec": (1, "tfllm.ModelSpec"),
        "input": (2, "tfllm.Input"),
    },
    "ExampleLog": {"request": (1, "tfllm.ExampleRequest")},
    "PredictionLog": {
        "classify_log": (2, "tfllm.ExampleLog"),
        "regress_log": (3, "tfllm.ExampleLog"),
        "predict_log": (6, "tfllm.PredictLog"),
    },
}


@functools.cache
def message(name: str) -> type:
    """The class of a declared message."""
    kinds = descriptor_pb2.FieldDescriptorProto
    plain = {"string": kinds.TYPE_STRING, "bytes": kinds.TYPE_BYTES}
    file = descriptor_pb2.FileDescriptorProto(
        name="tfllm.proto",
        package="tfllm",
        syntax="proto3",
        dependency=[meta_graph_pb2.DESCRIPTOR.name],
    )
    for declared, fields in _DECLARED.items():
        entry = file.message_type.add(name=declared)
        for field, (number, kind) in fields.items():
            many = isinstance(kind, list)
            kind = kind[0] if many else kind
            added = entry.field.add(name=field, number=number, type=plain.get(kind))
            added.label = kinds.LABEL_REPEATED if many else kinds.LABEL_OPTIONAL
            if kind not in plain:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".{kind}"
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())  # the same again changes nothing
    return message_factory.GetMessageClassesForFiles([file.name], pool)[f"tfllm.{name}"]


def nodes(meta_graph) -> list:
    """The NodeDefs of a MetaGraphDef's graph and of all its functions."""
    graph = meta_graph.graph_def
    bodies = (function.node_def for function in graph.library.function)
    return [*graph.node, *itertools.chain(*bodies)]
