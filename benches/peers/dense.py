"""Times the dense half of DCN V2 in PyTorch: the peer of benches/src/bin/dense.rs.

Training is forward and backward, the gradient of the input included; serving is forward alone.
Eager and torch.compile are both tried in training, and the faster is reported. The last line on
stdout is one JSON object.

Needs torch==2.11.*, numpy.
"""

import argparse
import json
import statistics
import time

import torch
from torch.nn import functional as F

from ctr_step import DcnV2

INPUTS, TRAINING_ROWS, SERVING_ROWS = 429, 4096, (50, 800)


def median(turns, body):
    for _ in range(3):
        body()
    times = []
    for _ in range(turns):
        started = time.perf_counter()
        body()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def training(network, turns):
    values = torch.rand(TRAINING_ROWS, INPUTS) * 2 - 1
    labels = torch.zeros(TRAINING_ROWS)

    def body():
        network.zero_grad(set_to_none=True)
        leaf = values.clone().requires_grad_()
        F.binary_cross_entropy_with_logits(network(leaf[:, :13], leaf[:, 13:]), labels).backward()

    return median(turns, body)


@torch.inference_mode()
def serving(network, rows, turns):
    values = torch.rand(rows, INPUTS) * 2 - 1
    return median(turns, lambda: network(values[:, :13], values[:, 13:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--no-compile", action="store_true", help="eager alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    ms = {}
    for name, layers in (("mlp", 0), ("cross", 3)):
        network = DcnV2(INPUTS, layers, 64, [400, 400])
        ways = [training(network, args.turns)]
        if not args.no_compile:
            ways.append(training(torch.compile(network), args.turns))
        ms[f"{name}/training"] = min(ways)
        for rows in SERVING_ROWS:
            ms[f"{name}/serving/{rows}"] = serving(network, rows, args.turns * 10)
    print(json.dumps({"ms": ms, "peer_version": f"torch {torch.__version__}", "n": args.turns}))


if __name__ == "__main__":
    main()
