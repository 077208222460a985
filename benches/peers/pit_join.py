"""A point-in-time join of impressions with feature rows: the peers of `marquee features join`.

    pit_join.py generate DIR --impressions N --values N --users N
    pit_join.py duckdb DIR     DuckDB's ASOF join, Parquet to Parquet
    pit_join.py feast DIR      Feast's get_historical_features over its default (file) offline store
    pit_join.py check DIR      matches and their sum in each result, which must be equal (and rows, but for Feast,
                               which loses those of users whose values all come later)

DIR holds impressions.parquet (user_id, event_time_us, impression) and values.parquet (user_id, value_time_us,
value), times in microseconds. Joined is the newest value before an impression. The last line on stdout is
one JSON object.

Needs duckdb, and feast for itself.
"""

import argparse
import json
import pathlib
import shutil
import time

import duckdb

DAYS = 30
START_US = 1_767_225_600_000_000


def parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("verb", choices=["generate", "duckdb", "feast", "check"])
    add("dir", type=pathlib.Path)
    add("--impressions", type=int, default=5_000_000)
    add("--values", type=int, default=2_000_000)
    add("--users", type=int, default=500_000)
    add("--threads", type=int, default=2)
    return parser


def connect(args):
    connection = duckdb.connect()
    connection.execute(f"SET threads = {args.threads}")
    connection.execute("SELECT setseed(0.5)")
    return connection


def generate(args):
    args.dir.mkdir(parents=True, exist_ok=True)
    connection = connect(args)
    # Random numbers of one thread are the same each time.
    connection.execute("SET threads = 1")
    user = f"(random() * {args.users})::BIGINT AS user_id"
    when = f"{START_US} + (random() * {DAYS * 86_400_000_000})::BIGINT"
    for name, count, columns in [
        ("impressions", args.impressions, f"{user}, {when} AS event_time_us, i AS impression"),
        ("values", args.values, f"{user}, {when} AS value_time_us, random() AS value"),
    ]:
        connection.execute(
            f"COPY (SELECT {columns} FROM range({count}) t(i)) TO '{args.dir / name}.parquet' "
            "(FORMAT parquet, ROW_GROUP_SIZE 250000)"
        )
    return {"impressions": args.impressions, "values": args.values}


def join_duckdb(args):
    connection = connect(args)
    to = args.dir / "duckdb.parquet"
    started = time.perf_counter()
    connection.execute(
        f"COPY (SELECT i.*, v.value_time_us, v.value FROM '{args.dir}/impressions.parquet' i "
        f"ASOF LEFT JOIN '{args.dir}/values.parquet' v "
        f"ON i.user_id = v.user_id AND i.event_time_us > v.value_time_us) TO '{to}' (FORMAT parquet)"
    )
    return {"seconds": time.perf_counter() - started, "peer_version": duckdb.__version__}


def join_feast(args):
    import feast
    import pandas
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64

    folder = args.dir / "feast"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # Feast wants timestamps, in its own source and in what is asked for.
    connection = connect(args)
    connection.execute(
        f"COPY (SELECT user_id, make_timestamp(value_time_us) AS event_timestamp, value "
        f"FROM '{args.dir}/values.parquet') TO '{folder}/values.parquet' (FORMAT parquet)"
    )
    wanted = connection.execute(
        f"SELECT user_id, make_timestamp(event_time_us) AS event_timestamp, impression FROM '{args.dir}/impressions.parquet'"
    ).df()
    wanted["event_timestamp"] = pandas.to_datetime(wanted["event_timestamp"], utc=True)
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            offline_store={"type": "file"},
            entity_key_serialization_version=3,
        )
    )
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    source = FileSource(path=str(folder / "values.parquet"), timestamp_field="event_timestamp")
    view = FeatureView(
        name="values", entities=[user], ttl=None, schema=[Field(name="value", dtype=Float64)], source=source
    )
    store.apply([user, view])
    started = time.perf_counter()
    joined = store.get_historical_features(entity_df=wanted, features=["values:value"]).to_df()
    joined.to_parquet(args.dir / "feast.parquet")
    return {"seconds": time.perf_counter() - started, "peer_version": feast.__version__}


def check(args):
    connection = connect(args)
    found = {}
    for name, path in [("ours", "ours/*.parquet"), ("duckdb", "duckdb.parquet"), ("feast", "feast.parquet")]:
        if list(args.dir.glob(path)):
            query = f"SELECT count(*), count(value), sum(value) FROM '{args.dir}/{path}'"
            rows, matched, total = connection.execute(query).fetchone()
            found[name] = [rows, matched, round(total, 3)]
    rows = {found[name][0] for name in found if name != "feast"}
    if len(rows) != 1 or len({(matched, total) for _, matched, total in found.values()}) != 1:
        raise SystemExit(f"the joins differ: {found}")
    return found


if __name__ == "__main__":
    args = parser().parse_args()
    verbs = {"generate": generate, "duckdb": join_duckdb, "feast": join_feast, "check": check}
    print(json.dumps(verbs[args.verb](args)))
