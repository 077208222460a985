"""Times what a checkpoint costs the training in PyTorch: the peer of benches/src/bin/checkpoint.rs.

The model and the step are those of ctr_step.py with the row-wise Adagrad by hand. Two ways:

- ``async``: torch.distributed.checkpoint.async_save, which copies and then writes beside the
  training;
- ``sync``: torch.save, during which no step is taken.

The last line on stdout is one JSON object.

Needs torch==2.11.*, numpy.
"""

import json
import os
import pathlib
import shutil
import statistics
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ctr_step import NUM_BATCHES, Training, batches, parser


def main():
    arguments = parser()
    arguments.add_argument("--way", choices=["async", "sync"], default="async")
    arguments.add_argument("--dir", type=pathlib.Path, required=True)
    arguments.add_argument("--turns", type=int, default=3)
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", init_method=f"file://{args.dir.absolute()}.store", rank=0, world_size=1)
    training = Training(args)
    data = list(batches(args))
    at = 0

    def step():
        nonlocal at
        started = time.perf_counter()
        training.step(*data[at % NUM_BATCHES])
        at += 1
        return time.perf_counter() - started

    def state():
        return {
            "network": training.network.state_dict(),
            "adam": training.adam.state_dict(),
            "tables": {"weights": training.tables.weights, "accumulators": training.tables.accumulators},
        }

    stalls, blocked, written = [], [], []
    for turn in range(args.turns):
        shutil.rmtree(args.dir, ignore_errors=True)
        args.dir.mkdir(parents=True)
        ordinary = statistics.median(step() for _ in range(args.steps))
        started = time.perf_counter()
        if args.way == "sync":
            torch.save(state(), args.dir / "state.pt")
            blocked.append(time.perf_counter() - started)
            stalls.append(blocked[-1])
        else:
            future = dcp.async_save(state(), checkpoint_id=args.dir)
            blocked.append(time.perf_counter() - started)
            stall = blocked[-1]
            while not future.done():
                stall += step() - ordinary
            future.result()
            stalls.append(stall)
        written.append(time.perf_counter() - started)
    size = sum(file.stat().st_size for file in args.dir.rglob("*") if file.is_file())
    shutil.rmtree(args.dir)
    pathlib.Path(f"{args.dir.absolute()}.store").unlink(missing_ok=True)
    result = {
        "stall_seconds": statistics.median(stalls),
        "blocked_seconds": statistics.median(blocked),
        "written_seconds": statistics.median(written),
        "bytes": size,
        "step_ms": ordinary * 1e3,
        "way": args.way,
        "peer_version": f"torch {torch.__version__}",
        "threads": args.threads,
        "n": args.turns,
    }
    print(json.dumps(result), flush=True)
    # A thread of the asynchronous writer keeps the process else.
    os._exit(0)


if __name__ == "__main__":
    main()
