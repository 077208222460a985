"""Nearest-neighbour search in FAISS: the peer of benches/src/bin/ann.rs.

Reads the vectors, queries and true neighbours that `ann` has written to --dir, so both search
the same bytes. Four indexes are built: HNSW and IVF, each over 32-bit and over 16-bit floats, with
the same number of edges and the same effort of construction. Of each, the smallest effort of
search (efSearch, nprobe) that reaches the target recall is measured, one query at a time on one
thread, the second time round. The fastest that reaches the target is FAISS's best; the others
stand under "variants". The last line on stdout is one JSON object.

Needs faiss-cpu==1.15.*, numpy.
"""

import argparse
import json
import pathlib
import time

import faiss
import numpy as np


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dir", type=pathlib.Path, required=True, help="folder that `ann` wrote")
    add("--connectivity", type=int, default=16, help="edges of a node (FAISS's M)")
    add("--ef-construction", type=int, default=128)
    add("--target-recall", type=float, default=0.95)
    add("--max-effort", type=int, default=4096, help="largest efSearch or nprobe that is tried")
    add("--build-threads", type=int, default=1)
    add("--only", default="", help="only variants whose name contains this")
    return parser.parse_args()


def read(folder):
    meta = json.loads((folder / "meta.json").read_text())
    floats = lambda name: np.fromfile(folder / name, dtype="<f4").reshape(-1, meta["dim"])
    truth = np.fromfile(folder / "truth.u32", dtype="<u4").reshape(-1, meta["k"])
    return meta, floats("vectors.f32"), floats("queries.f32"), truth


def variants(args, n, dim):
    """Name, maker of an index, and the attribute that is the effort of a search."""
    inner, half = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_fp16
    lists = max(1, min(n // 39, int(4 * n**0.5)))

    def hnsw(index):
        index.hnsw.efConstruction = args.ef_construction
        return index

    m = args.connectivity
    quantizer = lambda: faiss.IndexFlatIP(dim)
    yield "hnsw-f32", lambda: hnsw(faiss.IndexHNSWFlat(dim, m, inner)), "efSearch"
    yield "hnsw-f16", lambda: hnsw(faiss.IndexHNSWSQ(dim, half, m, inner)), "efSearch"
    yield "ivf-f32", lambda: faiss.IndexIVFFlat(quantizer(), dim, lists, inner), "nprobe"
    yield (
        "ivf-f16",
        lambda: faiss.IndexIVFScalarQuantizer(quantizer(), dim, lists, half, inner),
        "nprobe",
    )


def build(make, vectors, threads):
    faiss.omp_set_num_threads(threads)
    started = time.perf_counter()
    index = make()
    if not index.is_trained:
        index.train(vectors)
    index.add(vectors)
    return index, time.perf_counter() - started


def search_all(index, queries, k):
    times, found = [], []
    for row in range(len(queries)):
        query = queries[row : row + 1]
        started = time.perf_counter()
        _, keys = index.search(query, k)
        times.append(time.perf_counter() - started)
        found.append(keys[0])
    return np.array(times) * 1e3, np.array(found)


def measure(index, attribute, queries, truth, args):
    """The smallest effort, in steps of a quarter, that reaches the target."""
    faiss.omp_set_num_threads(1)
    k = truth.shape[1]
    place = index.hnsw if attribute == "efSearch" else index
    effort = k if attribute == "efSearch" else 1
    while True:
        setattr(place, attribute, effort)
        search_all(index, queries, k)
        times, found = search_all(index, queries, k)
        hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, truth))
        recall = hits / truth.size
        if recall >= args.target_recall or effort >= args.max_effort:
            break
        effort += (effort + 3) // 4
    times.sort()
    at = lambda share: float(times[int(np.ceil(share * len(times))) - 1])
    return {
        "recall_at_100": recall,
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        attribute: effort,
        "bytes": int(faiss.serialize_index(index).nbytes),
    }


def main():
    args = arguments()
    meta, vectors, queries, truth = read(args.dir)
    results = {}
    for name, make, attribute in variants(args, meta["n"], meta["dim"]):
        if args.only not in name:
            continue
        index, seconds = build(make, vectors, args.build_threads)
        results[name] = measure(index, attribute, queries, truth, args)
        results[name]["build_seconds"] = seconds
        del index
    reached = {k: v for k, v in results.items() if v["recall_at_100"] >= args.target_recall}
    best = min(reached or results, key=lambda name: results[name]["p50_ms"])
    report = {
        **results[best],
        "variant": best,
        "reached": bool(reached),
        "n": meta["n"],
        "threads": 1,
        "peer_version": faiss.__version__,
        "variants": results,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
