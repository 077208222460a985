"""Times a vision transformer's forward pass in PyTorch (timm): the peer of benches/src/bin/vit.rs.

f32, attention fused by PyTorch; eager and torch.compile are both tried, and the faster is reported.
`--export DIR` writes the weights (at random), a batch of pixels and the vectors for the other side.
The last line on stdout is one JSON object.

Needs torch, timm, safetensors.
"""

import argparse
import json
import pathlib
import statistics
import time

import timm
import torch
from safetensors.torch import save_file


def rate(body, batch, turns):
    for _ in range(2):
        body()
    times = []
    for _ in range(turns):
        started = time.perf_counter()
        body()
        times.append(time.perf_counter() - started)
    return batch / statistics.median(times)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--export", type=pathlib.Path)
    parser.add_argument("--no-compile", action="store_true", help="eager alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = timm.create_model(args.model, pretrained=False, num_classes=0, img_size=224).eval()
    # A fresh network's biases are zeros, and its first outputs hardly differ.
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter += torch.randn_like(parameter) * 0.1
    pixels = torch.randn(args.batch, 3, 224, 224)
    if args.export:
        args.export.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), args.export / "weights.safetensors")
        save_file({"pixels": pixels, "features": model(pixels).contiguous()}, args.export / "vectors.safetensors")
    rates = {"eager": rate(lambda: model(pixels), args.batch, args.turns)}
    if not args.no_compile:
        compiled = torch.compile(model)
        rates["compiled"] = rate(lambda: compiled(pixels), args.batch, args.turns)
    best = max(rates, key=rates.get)
    print(json.dumps({"pictures_per_second": rates[best], "how": best, "all": rates, "version": torch.__version__}))


if __name__ == "__main__":
    main()
