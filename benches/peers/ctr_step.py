"""Times one training step of DCN V2 in PyTorch: the peer of benches/src/bin/ctr_step.rs.

Same shapes, random inputs and threads. Two sparse optimizers:

- ``sparse-adam``: PyTorch's own, EmbeddingBag with sparse gradients and SparseAdam;
- ``rowwise-adagrad``: written by hand as one would for speed: all tables in one tensor, rows
  gathered outside autograd into one leaf, its gradient summed per distinct row, touched rows
  moved in place.

The dense half is trained with Adam (fused) either way. ``--compile`` puts it through
torch.compile. The last line on stdout is one JSON object.

Needs torch==2.11.*, numpy.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

NUM_BATCHES = 4
ADAGRAD_RATE, ADAGRAD_EPS = 0.05, 1e-8


def parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--optimizer", choices=["rowwise-adagrad", "sparse-adam"], default="rowwise-adagrad")
    add("--compile", action="store_true", help="compile the dense half")
    add("--num-sparse", type=int, default=26)
    add("--table-rows", type=int, default=1_000_000)
    add("--dim", type=int, default=16)
    add("--num-dense", type=int, default=13)
    add("--cross-layers", type=int, default=3)
    add("--cross-rank", type=int, default=64, help="0 means full")
    add("--hidden", default="400,400", help="widths, joined by commas")
    add("--batch", type=int, default=4096)
    add("--device", default="cpu")
    add("--threads", type=int, default=2)
    add("--warm-up", type=int, default=3)
    add("--steps", type=int, default=20)
    add("--seed", type=int, default=1)
    return parser


class DcnV2(nn.Module):
    """Cross layers beside a perceptron, as models/src/ctr/dcn_v2.rs (parallel)."""

    def __init__(self, inputs, cross_layers, rank, hidden):
        super().__init__()

        def cross():
            if rank == 0:
                return nn.Linear(inputs, inputs)
            return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, inputs))

        self.cross = nn.ModuleList(cross() for _ in range(cross_layers))
        widths = [inputs, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.output = nn.Linear(inputs + widths[-1], 1)

    def forward(self, dense, pooled):
        x0 = torch.cat([dense, pooled], 1)
        crossed = x0
        for layer in self.cross:
            crossed = torch.addcmul(crossed, x0, layer(crossed))
        deep = x0
        for layer in self.hidden:
            deep = F.relu(layer(deep))
        return self.output(torch.cat([crossed, deep], 1)).squeeze(1)


class SparseAdamTables:
    """PyTorch's own way: one EmbeddingBag a feature, sparse gradients, SparseAdam."""

    def __init__(self, args):
        self.batch = args.batch
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(args.table_rows, args.dim, mode="mean", sparse=True)
            for _ in range(args.num_sparse)
        )
        for bag in self.bags:
            nn.init.uniform_(bag.weight, -0.01, 0.01)
        self.optimizer = torch.optim.SparseAdam(list(self.bags.parameters()), lr=1e-3)
        self.offsets = torch.arange(args.batch)

    def lookup(self, ids):
        return torch.cat([bag(i, self.offsets) for bag, i in zip(self.bags, ids)], 1)

    def update(self):
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class RowwiseAdagradTables:
    """By hand: tables in one tensor, a leaf outside autograd, touched rows updated in place."""

    def __init__(self, args):
        rows = args.num_sparse * args.table_rows
        self.dim = args.dim
        self.weights = torch.empty(rows, args.dim).uniform_(-0.01, 0.01)
        self.accumulators = torch.zeros(rows)
        self.first_row = (torch.arange(args.num_sparse) * args.table_rows)[:, None]

    def lookup(self, ids):
        # [features, batch] -> [batch, features], so that the gather writes the pooled block.
        self.rows = (ids + self.first_row).t().reshape(-1)
        pooled = self.weights.index_select(0, self.rows).view(ids.shape[1], -1)
        self.leaf = pooled.requires_grad_()
        return self.leaf

    @torch.no_grad()
    def update(self):
        touched, inverse = torch.unique(self.rows, return_inverse=True)
        sums = torch.zeros(len(touched), self.dim)
        sums.index_add_(0, inverse, self.leaf.grad.view(-1, self.dim))
        state = self.accumulators.index_select(0, touched).add_(sums.square().mean(1))
        self.accumulators.index_copy_(0, touched, state)
        rate = state.sqrt_().add_(ADAGRAD_EPS).reciprocal_().mul_(-ADAGRAD_RATE)
        self.weights.index_add_(0, touched, sums.mul_(rate[:, None]))


def batches(args):
    random = torch.Generator(args.device).manual_seed(args.seed)
    for _ in range(NUM_BATCHES):
        shape = (args.num_sparse, args.batch)
        yield (
            torch.rand(args.batch, args.num_dense, generator=random) * 2 - 1,
            torch.randint(args.table_rows, shape, generator=random),
            (torch.rand(args.batch, generator=random) < 0.25).float(),
        )


class Training:
    """Network, tables and their optimizers."""

    def __init__(self, args):
        inputs = args.num_dense + args.num_sparse * args.dim
        hidden = [int(width) for width in args.hidden.split(",") if width]
        self.network = DcnV2(inputs, args.cross_layers, args.cross_rank, hidden)
        self.adam = torch.optim.Adam(self.network.parameters(), lr=1e-3, fused=True)
        self.forward = torch.compile(self.network) if args.compile else self.network
        kinds = {"sparse-adam": SparseAdamTables, "rowwise-adagrad": RowwiseAdagradTables}
        self.tables = kinds[args.optimizer](args)

    def step(self, dense, ids, labels):
        self.adam.zero_grad(set_to_none=True)
        logits = self.forward(dense, self.tables.lookup(ids))
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        loss.backward()
        self.tables.update()
        self.adam.step()
        return loss.item()


def main():
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    torch.manual_seed(args.seed)
    training = Training(args)
    data = list(batches(args))

    times = []
    for at in range(args.warm_up + args.steps):
        started = time.perf_counter()
        training.step(*data[at % NUM_BATCHES])
        times.append((time.perf_counter() - started) * 1e3)
    times = times[args.warm_up :]
    median = statistics.median(times)
    result = {
        "samples_per_second": args.batch / median * 1e3,
        "step_ms": median,
        "min_ms": min(times),
        "max_ms": max(times),
        "optimizer": args.optimizer,
        "device": args.device,
        "compiled": args.compile,
        "peer_version": f"torch {torch.__version__}",
        "threads": args.threads,
        "n": args.steps,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
