"""The networks of models/src/ctr/network once more, from their papers and with PyTorch's own modules.

`models/tests/parity/make.py` makes vectors with them that ours are compared with, and
`ctr_quality.py` trains them as ours are trained. Parameters have the names that ours have.
"""

import torch
import torch.nn.functional as F
from torch import nn


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
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        for layer in self.layers:
            x = self.dropout(torch.relu(layer(x)))
        return x


class Layout:
    """Columns of the input: dense numbers, then each field's row."""

    def __init__(self, num_dense, dims, names=None, dense=()):
        self.num_dense, self.dims = num_dense, dims
        self.names = names or [f"f{at}" for at in range(len(dims))]
        self.dense = list(dense)
        self.width = num_dense + sum(dims)

    def split(self, x):
        """Dense numbers, and fields as [batch, fields, dim]."""
        fields = x[:, self.num_dense :]
        return x[:, : self.num_dense], fields.reshape(len(x), len(self.dims), self.dims[0])

    def columns(self, name):
        if name in self.dense:
            return slice(self.dense.index(name), self.dense.index(name) + 1)
        at = self.names.index(name)
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


class Side(nn.Module):
    def __init__(self, columns, hidden, output_dim):
        super().__init__()
        self.columns = columns
        self.mlp = Mlp(len(columns), hidden)
        self.output = linear(self.mlp.outputs, output_dim)

    def forward(self, x):
        vector = self.output(self.mlp(x[:, self.columns]))
        return vector / (vector.square().sum(1, keepdim=True) + 1e-12).sqrt()


class TwoTower(nn.Module):
    def __init__(self, layout, item_features, hidden, output_dim, query_features=()):
        super().__init__()

        def columns(names):
            of = [layout.columns(name) for name in names]
            return [at for columns in of for at in range(columns.start, columns.stop)]

        item = columns(item_features or layout.names[-1:])
        query = columns(query_features) or [at for at in range(layout.width) if at not in item]
        self.query, self.item = Side(query, hidden, output_dim), Side(item, hidden, output_dim)
        self.log_scale = nn.Parameter(torch.full((1,), 5.0).log())
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return (self.query(x) * self.item(x)).sum(1, keepdim=True) * self.log_scale.exp() + self.bias


NETWORKS = {
    "logistic_regression": LogisticRegression,
    "fm": Fm,
    "deep_fm": DeepFm,
    "dlrm": Dlrm,
    "dcn_v2": DcnV2,
    "auto_int": AutoInt,
    "final_mlp": FinalMlp,
    "mmoe": Mmoe,
    "two_tower": TwoTower,
}


def make(config, layout):
    """The network of a configuration's `[model]`, with its weights as ours are drawn."""
    settings = {key: value for key, value in config.items() if key not in ("architecture", "net_dropout")}
    network = NETWORKS[config["architecture"]](layout, **settings)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -(module.in_features**-0.5), module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, DenseVectors) and module.weight is not None:
            bound = module.weight.shape[1] ** -0.5
            nn.init.uniform_(module.weight, -bound, bound)
        if isinstance(module, Fusion):
            bound = (6 / sum(module.bilinear.shape[1:])) ** 0.5
            nn.init.uniform_(module.bilinear, -bound, bound)
        # Where ours drop: not in gates, nor in DLRM's lower layers.
        if isinstance(module, Mlp) and "gates" not in name and not name.endswith("bottom"):
            module.dropout.p = config.get("net_dropout", 0.0)
    # After its linear layers, whose biases are zeros.
    for side in (module for module in network.modules() if isinstance(module, Side)):
        bound = side.output.in_features**-0.5
        nn.init.uniform_(side.output.bias, -bound, bound)
    return network


def row_dim(config, dim):
    """Length of an id's row, given that of its vector."""
    architecture = config["architecture"]
    if architecture == "logistic_regression":
        return 1
    return dim + (architecture in ("fm", "deep_fm"))
