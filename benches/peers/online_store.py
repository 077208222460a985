"""Feast's online lookup: 60 features for one person and 500 ads from its Redis Cluster store.

    online_store.py DIR --redis redis://HOST:PORT,…

As in benches/src/bin/online_store.rs, 20 features are of the person and 40 of the ad; here each is a number that
was computed before, so that nothing is left to do but to read it. The last line on stdout is one JSON object.

Needs feast with its redis extra.
"""

import argparse
import json
import pathlib
import random
import shutil
import time
from datetime import datetime, timedelta, timezone

import feast
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float32

FEATURES = {"user": 20, "ad": 40}


def frame(entity, rows, now):
    """One row of values for each entity, which its source file holds and the online store gets."""
    values = {f"{entity}_{at}": [float(row + at) for row in range(rows)] for at in range(FEATURES[entity])}
    return pd.DataFrame({f"{entity}_id": [f"{entity}{row}" for row in range(rows)], "at": now, **values})


def define(store, folder, rows, now):
    for entity in FEATURES:
        path = folder / f"{entity}.parquet"
        values = frame(entity, rows[entity], now)
        values.to_parquet(path)
        key = Entity(name=f"{entity}_entity", join_keys=[f"{entity}_id"], value_type=ValueType.STRING)
        view = FeatureView(
            name=entity,
            entities=[key],
            ttl=timedelta(days=7),
            schema=[Field(name=f"{entity}_{at}", dtype=Float32) for at in range(FEATURES[entity])],
            source=FileSource(path=str(path), timestamp_field="at"),
        )
        store.apply([key, view])
        store.write_to_online_store(entity, values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--ads", type=int, default=5_000)
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--lookups", type=int, default=100)
    args = parser.parse_args()

    shutil.rmtree(args.dir, ignore_errors=True)
    args.dir.mkdir(parents=True)
    nodes = ",".join(node.removeprefix("redis://") for node in args.redis.split(","))
    (args.dir / "feature_store.yaml").write_text(
        "project: bench\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
        f"online_store:\n  type: redis\n  redis_type: redis_cluster\n  connection_string: \"{nodes}\"\n"
    )
    store = FeatureStore(repo_path=str(args.dir))
    define(store, args.dir, {"user": args.users, "ad": args.ads}, datetime.now(timezone.utc))

    names = [f"{entity}:{entity}_{at}" for entity, count in FEATURES.items() for at in range(count)]
    draw = random.Random(1)
    milliseconds = []
    for lookup in range(args.lookups + 5):
        user = f"user{draw.randrange(args.users)}"
        ads = draw.sample(range(args.ads), args.candidates)
        rows = [{"user_id": user, "ad_id": f"ad{ad}"} for ad in ads]
        started = time.perf_counter()
        found = store.get_online_features(features=names, entity_rows=rows).to_dict()
        took = (time.perf_counter() - started) * 1e3
        if found["ad_3"] != [float(ad + 3) for ad in ads] or len(found["user_7"]) != args.candidates:
            raise SystemExit("online_store.py: Feast's values are not those that were written")
        if lookup >= 5:
            milliseconds.append(took)
    milliseconds.sort()
    at = lambda share: milliseconds[int((len(milliseconds) - 1) * share)]
    print(
        json.dumps(
            {"p50_ms": at(0.5), "p99_ms": at(0.99), "n": len(milliseconds), "peer_version": f"feast {feast.__version__}"}
        )
    )


if __name__ == "__main__":
    main()
