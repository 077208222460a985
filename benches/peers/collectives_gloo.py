"""Times all-reduce and all-to-all of PyTorch's Gloo: the peer of benches/src/bin/collectives.rs.

Starts itself once for every rank, as ours. Gloo's all-to-all works on equal parts. The last line
on stdout is one JSON object.

Needs torch==2.11.*, numpy.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist

SIZES = "1024,16384,262144,1048576,4194304,16777216,67108864"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--bytes", default=SIZES, help="joined by commas")
    parser.add_argument("--seconds", type=float, default=2.0, help="longest measurement of one size")
    return parser.parse_args()


def start(args):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": str(args.world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env={**os.environ, **place, "RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
            stdout=None if rank == 0 else subprocess.DEVNULL,
        )
        for rank in range(args.world_size)
    ]
    sys.exit(max(rank.wait() for rank in ranks))


def median(args, operation):
    """Milliseconds of one operation; all ranks make the same number of turns."""
    started = time.perf_counter()
    for _ in range(3):
        operation()
    turns = args.seconds / (time.perf_counter() - started) * 3
    turns = torch.tensor([min(max(turns, 5), 500)], dtype=torch.int64)
    dist.broadcast(turns, 0)
    times = []
    for _ in range(int(turns)):
        dist.barrier()
        started = time.perf_counter()
        operation()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def main():
    args = arguments()
    if "WORLD_SIZE" not in os.environ:
        start(args)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ms = {}
    for size in map(int, args.bytes.split(",")):
        values = torch.ones(size // 4)
        ms[f"all_reduce/{size}"] = median(args, lambda: dist.all_reduce(values))
        part = size // 4 // args.world_size * args.world_size
        given, taken = values[:part], torch.empty(part)
        ms[f"all_to_all/{size}"] = median(args, lambda: dist.all_to_all_single(taken, given))
    if dist.get_rank() == 0:
        result = {"ms": ms, "world_size": args.world_size, "peer_version": f"gloo of torch {torch.__version__}"}
        print(json.dumps(result), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
