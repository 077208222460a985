"""Trains a click model in PyTorch on the same rows as `marquee train`: its peer in quality.

Reads the Delta table that the pipeline or an import wrote and the resolved configuration of a run
(`config.resolved.toml` in its folder, or `marquee train CONFIG --print-config`), so that table,
split and hyper-parameters are the same and no default stands here. Networks (networks.py), initial
distributions, Adam, row-wise Adagrad, the running mean of the weights, the batch softmax of two towers and
the choice of the best epoch follow models/src/ctr and trainer/src/ctr; random numbers differ. Calibration is Platt's, of which ours
keeps only what chance does not explain: AUC is the same by both.

    python ctr_quality.py --table data/tables/impressions --config config.resolved.toml

The last line on stdout is one JSON object with the mean test AUC over the seeds.

Needs torch==2.11.*, numpy, deltalake, pyarrow.
"""

import argparse
import copy
import json
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from deltalake import DeltaTable
from torch import nn
from torch.nn import functional as F

import networks

SCORE_BATCH = 4096
DAY_US = 86_400_000_000
# What this script knows of `[training]`; a configuration that wants more has no peer here.
PLAIN = {
    "calibration": "platt",
    "early_stopping": 0,
    "evaluate_every_steps": 0,
    "label_smoothing": 0.0,
    "micro_batches": 1,
    "precision": "f32",
}


@dataclass
class Bags:
    """Rows of one sparse feature's table: row i owns ids[starts[i] : starts[i] + lengths[i]]."""

    starts: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray
    # Before they were taken modulo the table's rows.
    whole_ids: np.ndarray

    def gather(self, rows):
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        ids = self.ids[np.repeat(self.starts[rows], lengths) + within]
        return Batch(torch.from_numpy(ids), torch.from_numpy(offsets[:-1]), torch.from_numpy(lengths))


@dataclass
class Batch:
    rows: torch.Tensor
    offsets: torch.Tensor
    lengths: torch.Tensor


@dataclass
class Data:
    dense: np.ndarray
    dense_names: list[str]
    sparse: list[Bags]
    clicks: np.ndarray
    weights: np.ndarray
    times: np.ndarray
    table_version: int


def load(path, tables):
    """Rows by rising (event time, impression id), ids already taken modulo the table's rows."""
    delta = DeltaTable(path)
    schema = json.loads(delta.metadata().configuration["marquee.schema"])
    rows = delta.to_pyarrow_table().sort_by(
        [("event_time_us", "ascending"), ("impression_id", "ascending")]
    )

    def floats(name):
        return rows.column(name).combine_chunks().to_numpy(zero_copy_only=False).astype(np.float32)

    def bags(field):
        column = rows.column(f"s_{field['name']}").combine_chunks()
        if field["multi"]:
            lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            ids = column.flatten()
        else:
            lengths, ids = np.ones(len(rows), np.int64), column
        ids = ids.to_numpy(zero_copy_only=False).view(np.uint64)
        known = field.get("cardinality") or tables["rows"]
        num_rows = tables["rows_of"].get(field["name"], known)
        starts = np.cumsum(lengths) - lengths
        return Bags(starts, lengths, (ids % np.uint64(num_rows)).astype(np.int64), ids), num_rows

    sparse = [bags(field) for field in schema["sparse"]]
    dense = [floats(f"d_{field['name']}") for field in schema["dense"]]
    data = Data(
        np.stack(dense, 1) if dense else np.zeros((len(rows), 0), np.float32),
        [field["name"] for field in schema["dense"]],
        [bags for bags, _ in sparse],
        floats("click"),
        floats("weight"),
        rows.column("event_time_us").combine_chunks().to_numpy(),
        delta.version(),
    )
    return data, {field["name"]: rows for field, (_, rows) in zip(schema["sparse"], sparse)}


def split(config, times):
    """By time, as ours: rows of the same microsecond stay together, on the later side."""
    if config["by"] == "days":
        days = np.unique(times // DAY_US)
        last = len(days) - config["test_days"]
        held_out = [days[last - config["valid_days"]], days[last]]
        first, second = (int(np.searchsorted(times, day * DAY_US)) for day in held_out)
        return np.arange(first), np.arange(first, second), np.arange(second, len(times))

    def at(share):
        place = int(len(times) * share + 0.5)
        return int(np.searchsorted(times, times[place])) if place < len(times) else len(times)

    first, second = at(config["train"]), at(config["train"] + config["valid"])
    return np.arange(first), np.arange(first, second), np.arange(second, len(times))


class Tables:
    """Mean-pooled tables outside autograd with a touched-rows-only optimizer."""

    def __init__(self, num_rows, config, model):
        def dim(name):
            return networks.row_dim(model, config["dim_of"].get(name, config["embedding_dim"]))

        self.dims, self.optimizer = [dim(name) for name in num_rows], config["optimizer"]
        shapes = list(zip(num_rows.values(), self.dims))
        self.weights = [torch.empty(shape).uniform_(-0.01, 0.01) for shape in shapes]
        self.accumulators = [torch.zeros(rows) for rows, _ in shapes]

    def lookup(self, batches):
        pooled = [
            F.embedding_bag(batch.rows, weights, batch.offsets, mode="mean")
            for batch, weights in zip(batches, self.weights)
        ]
        return torch.cat(pooled, 1)

    @torch.no_grad()
    def update(self, batches, gradient):
        columns = gradient.split(self.dims, 1)
        for batch, g, weights, state in zip(batches, columns, self.weights, self.accumulators):
            touched, inverse = torch.unique(batch.rows, return_inverse=True)
            shares = (g / batch.lengths.clamp(min=1)[:, None]).repeat_interleave(batch.lengths, 0)
            sums = torch.zeros(len(touched), g.shape[1]).index_add_(0, inverse, shares)
            sums += self.optimizer["weight_decay"] * weights[touched]
            rate = torch.full((len(touched),), self.optimizer["learning_rate"])
            if self.optimizer["kind"] == "rowwise_adagrad":
                state[touched] += sums.square().mean(1)
                rate /= state[touched].sqrt() + self.optimizer["eps"]
            weights[touched] -= rate[:, None] * sums


class Model:
    def __init__(self, config, data, num_rows, train_rows):
        self.data = data
        dense = data.dense[train_rows].astype(np.float64)
        variance = dense.var(0)
        self.mean = dense.mean(0).astype(np.float32)
        self.std = np.where(variance > 1e-12, np.sqrt(variance), 1).astype(np.float32)
        self.tables = Tables(num_rows, config["tables"], config["model"])
        layout = networks.Layout(dense.shape[1], self.tables.dims, list(num_rows), data.dense_names)
        self.network = networks.make(config["model"], layout)
        training = config["training"]
        self.softmax = training["objective"] == "batch_softmax"
        # Which ad each row shows, and the logarithm of its share of the training rows.
        self.items = None
        if config["model"]["architecture"] == "two_tower":
            names = config["model"]["item_features"] or list(num_rows)[-1:]
            self.items = item_numbers(data, [at for at, name in enumerate(num_rows) if name in names])
            counts = np.bincount(self.items[train_rows], minlength=self.items.max() + 1)
            self.log_share = np.log(counts.clip(min=1) / len(train_rows)).astype(np.float32)
        self.gradient_norm = training["max_gradient_norm"] or float("inf")
        # What scores: the network itself, or a running mean of its weights.
        self.decay, self.updates = training["ema_decay"], 0
        self.scoring = copy.deepcopy(self.network) if self.decay > 0 else self.network
        self.adam = torch.optim.Adam(
            self.network.parameters(),
            lr=training["learning_rate"],
            betas=(training["optimizer"]["beta1"], training["optimizer"]["beta2"]),
            eps=training["optimizer"]["eps"],
            weight_decay=training["weight_decay"],
        )

    def input(self, rows):
        batches = [bags.gather(rows) for bags in self.data.sparse]
        dense = torch.from_numpy((self.data.dense[rows] - self.mean) / self.std)
        return dense, batches, self.tables.lookup(batches)

    def step(self, rows):
        self.network.train()
        dense, batches, pooled = self.input(rows)
        pooled.requires_grad_()
        labels, weights = (torch.from_numpy(v[rows]) for v in (self.data.clicks, self.data.weights))
        if self.softmax and not (labels * weights).any():
            return
        x = torch.cat([dense, pooled], 1)
        if self.softmax:
            loss = self.batch_softmax(x, rows, labels, weights)
        else:
            logits = self.network(x).squeeze(1)
            losses = F.binary_cross_entropy_with_logits(logits, labels, weights, reduction="sum")
            loss = losses / weights.sum()
        self.adam.zero_grad()
        loss.backward()
        self.tables.update(batches, pooled.grad)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_norm)
        self.adam.step()
        self.average()

    def batch_softmax(self, x, rows, labels, weights):
        """Clicked rows find their ad among those of the batch: Yi et al., RecSys 2019."""
        clicked = torch.nonzero(labels * weights > 0).squeeze(1)
        items = torch.from_numpy(self.items[rows])
        cosines = self.network.query(x[clicked]) @ self.network.item(x).T
        logits = cosines * self.network.log_scale.exp() - torch.from_numpy(self.log_share[self.items[rows]])
        same = items[clicked][:, None] == items[None, :]
        same[torch.arange(len(clicked)), clicked] = False
        losses = F.cross_entropy(logits.masked_fill(same, -1e9), clicked, reduction="none")
        weights = (weights * labels)[clicked]
        return (losses * weights).sum() / weights.sum()

    @torch.no_grad()
    def retrieval(self, rows):
        """Recall of clicked ads among the distinct ones of the rows, and the loss of a softmax over those."""
        self.scoring.eval()
        queries, wanted, vectors = [], [], {}
        for start in range(0, len(rows), SCORE_BATCH):
            part = rows[start : start + SCORE_BATCH]
            dense, _, pooled = self.input(part)
            x = torch.cat([dense, pooled], 1)
            clicked = np.flatnonzero(self.data.clicks[part] > 0.5)
            queries.append(self.scoring.query(x[clicked]))
            wanted.extend(self.items[part][clicked])
            for item, vector in zip(self.items[part], self.scoring.item(x)):
                vectors.setdefault(item, vector)
        places = {item: place for place, item in enumerate(vectors)}
        own = torch.tensor([places[item] for item in wanted])
        cosines = torch.cat(queries) @ torch.stack(list(vectors.values())).T
        others = cosines >= cosines.gather(1, own[:, None])
        ranks = others.sum(1) - 1
        found = {f"recall_at_{k}": float((ranks < k).float().mean()) for k in (1, 10, 100)}
        loss = F.cross_entropy(cosines * self.scoring.log_scale.exp(), own)
        return {"queries": len(own), "items": len(places), "loss": float(loss), **found}

    @torch.no_grad()
    def average(self):
        self.updates += 1
        if self.scoring is self.network:
            return
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for mean, weight in zip(self.scoring.parameters(), self.network.parameters()):
            mean.lerp_(weight, 1 - kept)

    @torch.no_grad()
    def logits(self, rows):
        self.scoring.eval()
        scores = []
        for start in range(0, len(rows), SCORE_BATCH):
            dense, _, pooled = self.input(rows[start : start + SCORE_BATCH])
            scores.append(self.scoring(torch.cat([dense, pooled], 1)).squeeze(1).numpy())
        return np.concatenate(scores).astype(np.float64)


def item_numbers(data, fields):
    """A number for each distinct ad: rows with equal ids in all of its features."""
    for bags in (data.sparse[field] for field in fields):
        if (bags.lengths != 1).any():
            sys.exit("model.item_features: this script tells ads apart by features of one id each")
    ids = np.stack([data.sparse[field].whole_ids for field in fields], 1)
    return np.unique(ids, axis=0, return_inverse=True)[1].reshape(-1)


def fit_platt(x, y, w):
    """Scale and offset of the logits by Newton's method; no correction where that fails."""
    scale, offset = 1.0, 0.0
    for _ in range(25):
        with np.errstate(over="ignore"):
            p = 1 / (1 + np.exp(-(scale * x + offset)))
        error, curvature = w * (p - y), w * p * (1 - p)
        gradient = np.array([(error * x).sum(), error.sum()])
        mixed = (curvature * x).sum()
        hessian = np.array([[(curvature * x * x).sum(), mixed], [mixed, curvature.sum()]])
        hessian += 1e-9 * np.eye(2)
        if abs(np.linalg.det(hessian)) < 1e-12:
            return 1.0, 0.0
        scale, offset = np.array([scale, offset]) - np.linalg.solve(hessian, gradient)
    return (scale, offset) if scale > 0 and np.isfinite(scale + offset) else (1.0, 0.0)


def log_loss(x, y, w):
    """Weighted log loss of logits."""
    return (w * (np.logaddexp(0, x) - y * x)).sum() / w.sum()


def auc(scores, labels, weights):
    """Exact, ties counting half; a row counts as its weight says."""
    order = np.argsort(scores, kind="stable")
    scores, labels, weights = scores[order], labels[order], weights[order].astype(np.float64)
    begins = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    positives, negatives = (np.add.reduceat(weights * part, begins) for part in (labels, 1 - labels))
    below = np.cumsum(negatives) - negatives
    return (positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum())


def train(config, data, num_rows, seed):
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    train_rows, valid, test = split(config["split"], data.times)
    model = Model(config, data, num_rows, train_rows)
    labels = (data.clicks[valid].astype(np.float64), data.weights[valid].astype(np.float64))
    best = (np.inf,)
    for epoch in range(1, config["training"]["epochs"] + 1):
        order = random.permutation(train_rows)
        for start in range(0, len(order), config["training"]["batch_size"]):
            model.step(order[start : start + config["training"]["batch_size"]])
        logits = model.logits(valid)
        scale, offset = fit_platt(logits, *labels)
        loss = log_loss(scale * logits + offset, *labels)
        told = f"valid AUC {auc(logits, *labels):.4f}, log loss {loss:.4f}"
        if model.softmax:
            found = model.retrieval(valid)
            loss = found["loss"]
            told += f", recall@10 {found['recall_at_10']:.4f}"
        print(f"seed {seed}, epoch {epoch}: {told}", file=sys.stderr)
        if loss < best[0]:
            kept = copy.deepcopy((model.scoring.state_dict(), model.tables.weights))
            best = (loss, epoch, scale, offset, kept)
    _, epoch, scale, offset, (network, weights) = best
    model.scoring.load_state_dict(network)
    model.tables.weights = weights
    logits, y, w = model.logits(test), data.clicks[test], data.weights[test]
    calibrated = scale * logits + offset
    return {
        "seed": seed,
        "epoch": epoch,
        "auc": float(auc(logits, y, w)),
        "log_loss": float(log_loss(calibrated, y, w)),
        "calibration_ratio": float((w / (1 + np.exp(-calibrated))).sum() / (w * y).sum()),
        "retrieval": model.retrieval(test) if model.items is not None else None,
    }


def check(config):
    """Ends where a configuration asks for what is not here: the peer would be another model."""
    training, tables = config["training"], config["tables"]
    wrong = [key for key, value in PLAIN.items() if training[key] != value]
    wrong += ["optimizer"] * (training["optimizer"]["kind"] != "adam")
    wrong += ["schedule"] * (training["schedule"]["decay"] != "constant" or training["schedule"]["warm_up_steps"] > 0)
    wrong += ["tables.dynamic"] * bool(tables["dynamic"])
    wrong += ["tables.shared_by"] * bool(tables.get("shared_by"))
    wrong += ["tables.reinitialise_each_epoch"] * tables["reinitialise_each_epoch"]
    wrong += ["tables.pooling"] * (tables["pooling"] != "mean")
    wrong += ["tables.storage"] * (tables["storage"] != "f32")
    wrong += ["tables.optimizer.kind"] * (tables["optimizer"]["kind"] not in ("rowwise_adagrad", "sgd"))
    wrong += ["tables.optimizer.max_row_norm"] * (tables["optimizer"]["max_row_norm"] > 0)
    wrong += ["guard"] * (training["guard"]["spike_factor"] > 0)
    softmax, towers = training["objective"] == "batch_softmax", config["model"]["architecture"] == "two_tower"
    wrong += ["objective"] * (softmax and not towers)
    wrong += ["model.architecture"] * (config["model"]["architecture"] == "mmoe")
    if wrong:
        sys.exit(f"this script cannot do as the configuration wants: {', '.join(wrong)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="folder of the Delta table")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration (TOML)")
    parser.add_argument("--seeds", default="1,2,3", help="seeds, joined by commas")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = tomllib.loads(args.config.read_text())
    check(config)
    try:
        data, num_rows = load(args.table, config["tables"])
        runs = [train(config, data, num_rows, int(seed)) for seed in args.seeds.split(",")]
    except KeyError as key:
        sys.exit(f"{args.config} or {args.table} has no key {key}: pass a run's config.resolved.toml")

    def mean(key):
        return float(np.mean([run[key] for run in runs]))

    result = {
        "auc": mean("auc"),
        "log_loss": mean("log_loss"),
        "calibration_ratio": mean("calibration_ratio"),
        "runs": runs,
        "table_version": data.table_version,
        "peer_version": f"torch {torch.__version__}",
        "threads": args.threads,
        "n": len(runs),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
