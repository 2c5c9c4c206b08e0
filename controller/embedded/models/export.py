"""Own the form in which a network is served: an ONNX graph that slides it over a page.

Runs in the server's environment. The perceptron over one window becomes convolutions over the
page: the first as large as the window, the others 1 x 1; the best place on the page gives each
class its score. Must not train or measure.
"""

import numpy as np
import onnx
import onnxruntime
from network import Network
from onnx import TensorProto, helper, numpy_helper
from pages import BACKGROUND, CLASSES, PAGE, WINDOW, ink_scale

_OPSET, _IR_VERSION = 17, 8


def to_onnx(network: Network, variant: int) -> onnx.ModelProto:
    """Turn a window network into the page model that is served.

    Input `page`: uint8, rows x PAGE x PAGE. Output `scores`: float32, rows x CLASSES. The
    number of the variant travels as metadata, where no change of Triton's config can lose it.
    """
    axes = numpy_helper.from_array(np.array([1], np.int64), "channel_axis")
    nodes = [
        helper.make_node("Unsqueeze", ["page", "channel_axis"], ["image"]),
        helper.make_node("Cast", ["image"], ["layer_in"], to=TensorProto.FLOAT),
    ]
    constants, value = [axes], "layer_in"
    for index, layer in enumerate(network):
        weight, bias = layer.weight.astype(np.float64), layer.bias.astype(np.float64)
        if index == 0:
            scale, shift = ink_scale()
            bias, weight = bias + shift * weight.sum(axis=0), weight * scale
        if index == len(network) - 1:
            # Scores are relative to "no digit here": comparable between places on the page.
            weight = weight[:, :CLASSES] - weight[:, BACKGROUND:]
            bias = bias[:CLASSES] - bias[BACKGROUND]
        side = WINDOW if index == 0 else 1
        kernel = weight.T.reshape(weight.shape[1], -1, side, side)
        constants += [
            numpy_helper.from_array(np.ascontiguousarray(kernel, np.float32), f"weight_{index}"),
            numpy_helper.from_array(bias.astype(np.float32), f"bias_{index}"),
        ]
        nodes.append(
            helper.make_node(
                "Conv", [value, f"weight_{index}", f"bias_{index}"], [f"affine_{index}"]
            )
        )
        value = f"affine_{index}"
        if layer.rectified:
            nodes.append(helper.make_node("Relu", [value], [f"rectified_{index}"]))
            value = f"rectified_{index}"
    nodes.append(helper.make_node("ReduceMax", [value], ["scores"], axes=[2, 3], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("page", TensorProto.UINT8, ["rows", PAGE, PAGE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", CLASSES])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    helper.set_model_props(model, {"variant": str(variant)})
    onnx.checker.check_model(model)
    return model


def open_session(model: bytes) -> onnxruntime.InferenceSession:
    """Open a model exactly as model.py does in the server."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
