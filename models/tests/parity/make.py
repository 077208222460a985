#!/usr/bin/env python3
"""Makes the vectors that our networks are compared with: PyTorch's of the same papers.

    python3 models/tests/parity/make.py        # in an environment with torch, numpy and safetensors

The networks are those of benches/peers/networks.py, with random weights. A file `CASE.safetensors`
holds the weights (`weight:NAME`, linear ones as [inputs, outputs]), a batch (`input`, `labels`,
`weights`, for two tasks `observed`), what PyTorch makes of it (`logits`, `loss`), and the loss's
gradients (`gradient:NAME`, `gradient:input`). Its metadata say which configuration and which columns
they belong to.
"""

import json
import pathlib
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "benches/peers"))
from networks import NETWORKS, Layout  # noqa: E402

ROWS = 6


def bce(logits, labels, weights):
    return F.binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction="sum") / weights.sum()


def entire_space(logits, labels, weights, observed):
    """Clicks, and conversions among all rows, of which a share `observed` would be known by now."""
    clicks, conversions = logits[:, :1].double(), logits[:, 1:].double()
    both = torch.sigmoid(clicks) * torch.sigmoid(conversions)
    label = labels[:, 1:].double()
    loss = -(label * both.log() + (1 - label) * (1 - both * observed.double()).log())
    of_conversions = ((loss * weights.double()).sum() / weights.sum()).float()
    return bce(logits[:, :1], labels[:, :1], weights) + of_conversions


FIELDS = [4, 4, 4]
CASES = {
    "logistic_regression": (Layout(2, [1, 1, 1]), {}),
    "fm": (Layout(2, [5, 5, 5]), {}),
    "deep_fm": (Layout(2, [5, 5, 5]), {"hidden": [7, 5]}),
    "dlrm": (Layout(3, FIELDS), {"bottom_hidden": [6], "top_hidden": [7, 5]}),
    "dlrm-without-dense": (Layout(0, [4] * 4), {"bottom_hidden": [6], "top_hidden": [5]}),
    "dcn_v2-parallel": (Layout(2, [4, 3]), {"num_cross_layers": 2, "cross_rank": 0, "hidden": [7, 5], "structure": "parallel"}),
    "dcn_v2-stacked": (Layout(2, [4, 3]), {"num_cross_layers": 2, "cross_rank": 0, "hidden": [7, 5], "structure": "stacked"}),
    "dcn_v2-low-rank": (Layout(2, [4, 3]), {"num_cross_layers": 3, "cross_rank": 2, "hidden": [5], "structure": "parallel"}),
    "auto_int": (Layout(2, FIELDS), {"num_layers": 2, "num_heads": 2, "attention_dim": 3, "hidden": [7]}),
    "auto_int-alone": (Layout(0, FIELDS), {"num_layers": 1, "num_heads": 3, "attention_dim": 2, "hidden": []}),
    "final_mlp": (Layout(2, [4, 3, 4]), {"hidden_1": [7, 6], "hidden_2": [4], "num_heads": 2, "use_gates": True, "gate_hidden": [5], "gate_context_1": [], "gate_context_2": ["f2", "f0"]}),
    "final_mlp-without-gates": (Layout(2, [4, 3]), {"hidden_1": [6], "hidden_2": [6], "num_heads": 3, "use_gates": False}),
    "mmoe": (Layout(2, [4, 3]), {"num_experts": 3, "expert_hidden": [6, 5], "tower_hidden": [4]}),
    "two_tower": (Layout(2, [4, 3, 4]), {"item_features": ["f2", "f0"], "hidden": [6], "output_dim": 5}),
    "two_tower-last": (Layout(0, [4, 3]), {"item_features": [], "hidden": [6, 5], "output_dim": 4}),
    "dcn_v2-stacked-low-rank": (Layout(2, [4, 3]), {"num_cross_layers": 2, "cross_rank": 3, "hidden": [6], "structure": "stacked"}),
}


def make(name, layout, settings):
    kind = NETWORKS[name.split("-")[0]]
    network = kind(layout, **settings)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    tasks = 2 if name == "mmoe" else 1
    batch = torch.randn(ROWS, layout.width).requires_grad_()
    labels = (torch.arange(ROWS)[:, None] % 2 == 0).float()
    weights = torch.rand(ROWS, 1) + 0.5
    tensors = {"input": batch, "weights": weights}
    logits = network(batch)
    if tasks == 1:
        loss = bce(logits, labels, weights)
    else:
        labels = torch.cat([labels, (torch.arange(ROWS)[:, None] == 2).float()], 1)
        # Of what was not clicked it is known that there is no conversion.
        observed = torch.where(labels[:, :1] == 1, torch.rand(ROWS, 1), 1.0)
        tensors["observed"] = observed
        loss = entire_space(logits, labels, weights, observed)
    loss.backward()
    tensors |= {"labels": labels, "logits": logits, "loss": loss[None], "gradient:input": batch.grad}
    linears = {f"{n}.weight" for n, module in network.named_modules() if isinstance(module, nn.Linear)}
    for key, parameter in network.named_parameters():
        for what, values in [("weight", parameter), ("gradient", parameter.grad)]:
            values = values.T if key in linears else values
            tensors[f"{what}:{kind.__name__}.{key}"] = values
    tensors = {key: value.detach().contiguous() for key, value in tensors.items()}
    config = {"architecture": name.split("-")[0], **settings}
    case = {
        "config": config,
        "num_dense": layout.num_dense,
        "dims": layout.dims,
        "made_by": f"torch {torch.__version__.split('+')[0]}",
    }
    save_file(tensors, HERE / f"{name}.safetensors", {"case": json.dumps(case)})


if __name__ == "__main__":
    torch.manual_seed(1)
    for name, case in CASES.items():
        make(name, *case)
