#!/usr/bin/env python3
"""Makes the vectors that our networks are compared with: PyTorch's of the same papers.

    python3 models/tests/parity/make.py        # in an environment with torch, numpy and safetensors

Each network is written here once more, from its paper and with PyTorch's own modules, with random
weights. A file `CASE.safetensors` holds them (`weight:NAME`, linear ones as [inputs, outputs]), a
batch (`input`, `labels`, `weights`, for two tasks `observed`), what PyTorch makes of it (`logits`,
`loss`), and the loss's gradients (`gradient:NAME`, `gradient:input`). Its metadata say which
configuration and which columns they belong to.
"""

import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
ROWS = 6


def linear(inputs, outputs, bias=True):
    return nn.Linear(inputs, outputs, bias=bias)


class Mlp(nn.Module):
    def __init__(self, inputs, widths):
        super().__init__()
        self.layers = nn.ModuleList()
        for width in widths:
            self.layers.append(linear(inputs, width))
            inputs = width
        self.outputs = inputs

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class Layout:
    def __init__(self, num_dense, dims):
        self.num_dense, self.dims = num_dense, dims
        self.width = num_dense + sum(dims)

    def split(self, x):
        """Dense numbers, and fields as [batch, fields, dim]."""
        fields = x[:, self.num_dense :]
        return x[:, : self.num_dense], fields.reshape(len(x), len(self.dims), self.dims[0])

    def columns(self, name):
        at = int(name.removeprefix("f"))
        first = self.num_dense + sum(self.dims[:at])
        return slice(first, first + self.dims[at])


class FirstOrder(nn.Module):
    def __init__(self, num_dense):
        super().__init__()
        self.dense = nn.Parameter(torch.zeros(num_dense, 1)) if num_dense else None
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, dense, of_fields):
        logit = of_fields.sum(1, keepdim=True) + self.bias
        return logit if self.dense is None else logit + dense @ self.dense


class DenseVectors(nn.Module):
    def __init__(self, num_dense, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_dense, dim)) if num_dense else None

    def forward(self, dense, fields):
        if self.weight is None:
            return fields
        return torch.cat([torch.einsum("bn,nd->bnd", dense, self.weight), fields], 1)


class LogisticRegression(nn.Module):
    def __init__(self, layout):
        super().__init__()
        self.layout, self.first_order = layout, FirstOrder(layout.num_dense)

    def forward(self, x):
        dense, fields = self.layout.split(x)
        return self.first_order(dense, fields[:, :, 0])


class Fm(nn.Module):
    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        self.first_order = FirstOrder(layout.num_dense)
        self.dense_vectors = DenseVectors(layout.num_dense, layout.dims[0] - 1)

    def forward(self, x):
        dense, fields = self.layout.split(x)
        vectors = self.dense_vectors(dense, fields[:, :, 1:])
        logit = self.first_order(dense, fields[:, :, 0])
        # As in the definition, pair by pair.
        for i in range(vectors.shape[1]):
            for j in range(i + 1, vectors.shape[1]):
                logit = logit + (vectors[:, i] * vectors[:, j]).sum(1, keepdim=True)
        return logit


class DeepFm(nn.Module):
    def __init__(self, layout, hidden):
        super().__init__()
        self.layout, self.fm = layout, Fm(layout)
        self.mlp = Mlp(layout.width - len(layout.dims), hidden)
        self.output = linear(self.mlp.outputs, 1)

    def forward(self, x):
        dense, fields = self.layout.split(x)
        deep = torch.cat([dense, fields[:, :, 1:].flatten(1)], 1)
        return self.fm(x) + self.output(self.mlp(deep))


class Dlrm(nn.Module):
    def __init__(self, layout, bottom_hidden, top_hidden):
        super().__init__()
        self.layout, dim = layout, layout.dims[0]
        has_dense = layout.num_dense > 0
        self.bottom = Mlp(layout.num_dense, [*bottom_hidden, dim]) if has_dense else None
        count = len(layout.dims) + has_dense
        self.top = Mlp(has_dense * dim + count * (count - 1) // 2, top_hidden)
        self.output = linear(self.top.outputs, 1)

    def forward(self, x):
        dense, vectors = self.layout.split(x)
        parts = []
        if self.bottom is not None:
            dense = self.bottom(dense)
            parts.append(dense)
            vectors = torch.cat([dense[:, None], vectors], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        rows, columns = torch.tril_indices(vectors.shape[1], vectors.shape[1], -1)
        parts.append(products[:, rows, columns])
        return self.output(self.top(torch.cat(parts, 1)))


class Cross(nn.Module):
    def __init__(self, width, rank):
        super().__init__()
        self.down = linear(width, rank, bias=False) if rank else None
        self.up = linear(rank or width, width)

    def forward(self, x0, x):
        return x0 * self.up(x if self.down is None else self.down(x)) + x


class DcnV2(nn.Module):
    def __init__(self, layout, num_cross_layers, cross_rank, hidden, structure):
        super().__init__()
        width = layout.width
        self.cross = nn.ModuleList(Cross(width, cross_rank) for _ in range(num_cross_layers))
        self.mlp = Mlp(width, hidden)
        self.stacked = structure == "stacked"
        self.output = linear(self.mlp.outputs + (0 if self.stacked else width), 1)

    def forward(self, x):
        crossed = x
        for layer in self.cross:
            crossed = layer(x, crossed)
        if self.stacked:
            return self.output(self.mlp(crossed))
        return self.output(torch.cat([crossed, self.mlp(x)], 1))


class Attention(nn.Module):
    def __init__(self, inputs, heads, dim):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.residual = (
            linear(inputs, heads * dim, bias=False) for _ in range(4)
        )

    def forward(self, x):
        split = lambda y: y.unflatten(2, (self.heads, -1)).transpose(1, 2)
        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return torch.relu(attended.transpose(1, 2).flatten(2) + self.residual(x))


class Deep(nn.Module):
    def __init__(self, inputs, hidden):
        super().__init__()
        self.mlp = Mlp(inputs, hidden)
        self.output = linear(self.mlp.outputs, 1)

    def forward(self, x):
        return self.output(self.mlp(x))


class AutoInt(nn.Module):
    def __init__(self, layout, num_layers, num_heads, attention_dim, hidden):
        super().__init__()
        self.layout, dim = layout, layout.dims[0]
        self.dense_vectors = DenseVectors(layout.num_dense, dim)
        self.attention = nn.ModuleList()
        for _ in range(num_layers):
            self.attention.append(Attention(dim, num_heads, attention_dim))
            dim = num_heads * attention_dim
        self.output = linear((layout.num_dense + len(layout.dims)) * dim, 1)
        self.deep = Deep(layout.width, hidden) if hidden else None

    def forward(self, x):
        vectors = self.dense_vectors(*self.layout.split(x))
        for layer in self.attention:
            vectors = layer(vectors)
        logit = self.output(vectors.flatten(1))
        return logit if self.deep is None else logit + self.deep(x)


class Gate(nn.Module):
    def __init__(self, layout, hidden, features):
        super().__init__()
        self.columns = [layout.columns(name) for name in features]
        width = sum(c.stop - c.start for c in self.columns) or 16
        self.context = None if features else nn.Parameter(torch.zeros(1, width))
        self.mlp = Mlp(width, hidden)
        self.output = linear(self.mlp.outputs, layout.width)

    def forward(self, x):
        context = self.context
        if context is None:
            context = torch.cat([x[:, columns] for columns in self.columns], 1)
        else:
            context = context.expand(len(x), -1)
        return x * 2 * torch.sigmoid(self.output(self.mlp(context)))


class Fusion(nn.Module):
    def __init__(self, x, y, heads):
        super().__init__()
        self.of_first, self.of_second = linear(x, 1), linear(y, 1, bias=False)
        self.bilinear = nn.Parameter(torch.zeros(heads, x // heads, y // heads))

    def forward(self, x, y):
        logit = self.of_first(x) + self.of_second(y)
        heads = len(self.bilinear)
        for x, w, y in zip(x.chunk(heads, 1), self.bilinear, y.chunk(heads, 1)):
            logit = logit + torch.einsum("bi,ij,bj->b", x, w, y)[:, None]
        return logit


class FinalMlp(nn.Module):
    def __init__(self, layout, hidden_1, hidden_2, num_heads, use_gates, gate_hidden=(), gate_context_1=(), gate_context_2=()):
        super().__init__()
        contexts = [gate_context_1, gate_context_2] if use_gates else []
        self.gates = nn.ModuleList(Gate(layout, gate_hidden, context) for context in contexts)
        self.first, self.second = Mlp(layout.width, hidden_1), Mlp(layout.width, hidden_2)
        self.fusion = Fusion(hidden_1[-1], hidden_2[-1], num_heads)

    def forward(self, x):
        one, two = [gate(x) for gate in self.gates] or [x, x]
        return self.fusion(self.first(one), self.second(two))


class Tower(nn.Module):
    def __init__(self, inputs, experts, mixed, hidden):
        super().__init__()
        self.gate = linear(inputs, experts, bias=False)
        self.mlp = Mlp(mixed, hidden)
        self.output = linear(self.mlp.outputs, 1)

    def forward(self, x, experts):
        mixed = torch.einsum("be,bed->bd", F.softmax(self.gate(x), 1), experts)
        return self.output(self.mlp(mixed))


class Mmoe(nn.Module):
    def __init__(self, layout, num_experts, expert_hidden, tower_hidden):
        super().__init__()
        self.experts = nn.ModuleList(Mlp(layout.width, expert_hidden) for _ in range(num_experts))
        self.towers = nn.ModuleList(
            Tower(layout.width, num_experts, expert_hidden[-1], tower_hidden) for _ in range(2)
        )

    def forward(self, x):
        experts = torch.stack([expert(x) for expert in self.experts], 1)
        return torch.cat([tower(x, experts) for tower in self.towers], 1)


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
    "logistic_regression": (LogisticRegression, Layout(2, [1, 1, 1]), {}),
    "fm": (Fm, Layout(2, [5, 5, 5]), {}),
    "deep_fm": (DeepFm, Layout(2, [5, 5, 5]), {"hidden": [7, 5]}),
    "dlrm": (Dlrm, Layout(3, FIELDS), {"bottom_hidden": [6], "top_hidden": [7, 5]}),
    "dlrm-without-dense": (Dlrm, Layout(0, [4] * 4), {"bottom_hidden": [6], "top_hidden": [5]}),
    "dcn_v2-parallel": (DcnV2, Layout(2, [4, 3]), {"num_cross_layers": 2, "cross_rank": 0, "hidden": [7, 5], "structure": "parallel"}),
    "dcn_v2-stacked": (DcnV2, Layout(2, [4, 3]), {"num_cross_layers": 2, "cross_rank": 0, "hidden": [7, 5], "structure": "stacked"}),
    "dcn_v2-low-rank": (DcnV2, Layout(2, [4, 3]), {"num_cross_layers": 3, "cross_rank": 2, "hidden": [5], "structure": "parallel"}),
    "auto_int": (AutoInt, Layout(2, FIELDS), {"num_layers": 2, "num_heads": 2, "attention_dim": 3, "hidden": [7]}),
    "auto_int-alone": (AutoInt, Layout(0, FIELDS), {"num_layers": 1, "num_heads": 3, "attention_dim": 2, "hidden": []}),
    "final_mlp": (FinalMlp, Layout(2, [4, 3, 4]), {"hidden_1": [7, 6], "hidden_2": [4], "num_heads": 2, "use_gates": True, "gate_hidden": [5], "gate_context_1": [], "gate_context_2": ["f2", "f0"]}),
    "final_mlp-without-gates": (FinalMlp, Layout(2, [4, 3]), {"hidden_1": [6], "hidden_2": [6], "num_heads": 3, "use_gates": False}),
    "mmoe": (Mmoe, Layout(2, [4, 3]), {"num_experts": 3, "expert_hidden": [6, 5], "tower_hidden": [4]}),
}


def make(name, kind, layout, settings):
    network = kind(layout, **settings)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    tasks = 2 if kind is Mmoe else 1
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
    metadata = {
        "config": json.dumps(config),
        "num_dense": str(layout.num_dense),
        "dims": json.dumps(layout.dims),
        "made_by": f"torch {torch.__version__.split('+')[0]}",
    }
    save_file(tensors, HERE / f"{name}.safetensors", metadata)


if __name__ == "__main__":
    torch.manual_seed(1)
    for name, case in CASES.items():
        make(name, *case)
