"""Times lookup and update of embedding tables in PyTorch: the peer of benches/src/bin/embedding.rs.

Two ways, as in ctr_step.py: EmbeddingBag with SparseAdam, and a row-wise Adagrad by hand. The last
line on stdout is one JSON object.

Needs torch==2.11.*, numpy.
"""

import argparse
import json
import statistics
import time

import torch

from ctr_step import NUM_BATCHES, RowwiseAdagradTables, SparseAdamTables


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--optimizer", choices=["rowwise-adagrad", "sparse-adam"], default="rowwise-adagrad")
    add("--num-sparse", type=int, default=26)
    add("--table-rows", type=int, default=1_000_000)
    add("--dim", type=int, default=16)
    add("--batch", type=int, default=4096)
    add("--threads", type=int, default=2)
    add("--turns", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    tables = {"sparse-adam": SparseAdamTables, "rowwise-adagrad": RowwiseAdagradTables}[args.optimizer](args)
    shape = (args.num_sparse, args.batch)
    batches = [torch.randint(args.table_rows, shape) for _ in range(NUM_BATCHES)]
    gradient = torch.full((args.batch, args.num_sparse * args.dim), 0.01)
    times = []
    for turn in range(args.turns + 3):
        started = time.perf_counter()
        pooled = tables.lookup(batches[turn % NUM_BATCHES])
        pooled.backward(gradient)
        tables.update()
        times.append((time.perf_counter() - started) * 1e3)
    result = {
        "step_ms": statistics.median(times[3:]),
        "optimizer": args.optimizer,
        "peer_version": f"torch {torch.__version__}",
        "n": args.turns,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
