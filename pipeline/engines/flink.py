"""Computes features with Flink, by the script that `marquee features sql --engine flink` writes.

    flink.py SCRIPT FOLDER JAR

FOLDER holds fact_events.json and fact_requests.json, a JSON object a line, and SCRIPT also says their
columns; flink/features/ is made there. JAR has our functions (pipeline/engines/java).
"""

import json
import pathlib
import sys

from pyflink.table import EnvironmentSettings, TableEnvironment

FUNCTIONS = {
    "marquee_hash_text": "MarqueeHashText",
    "marquee_hash_integer": "MarqueeHashInteger",
    "marquee_log1p": "MarqueeLog1p",
    "marquee_dot": "MarqueeDot",
}


def files(path):
    return f"WITH ('connector' = 'filesystem', 'path' = '{path}', 'format' = 'json')"


def main(script, folder, jar):
    folder = pathlib.Path(folder).resolve()
    script = json.loads(pathlib.Path(script).read_text())
    flink = TableEnvironment.create(EnvironmentSettings.in_batch_mode())
    settings = flink.get_config()
    settings.set("parallelism.default", "1")
    settings.set("table.local-time-zone", "UTC")
    settings.set("pipeline.jars", pathlib.Path(jar).resolve().as_uri())
    for name, of in FUNCTIONS.items():
        flink.execute_sql(f"CREATE TEMPORARY SYSTEM FUNCTION {name} AS '{of}' LANGUAGE JAVA")
    for name in ("fact_events", "fact_requests"):
        columns = ", ".join(f"{column['name']} {column['type']}" for column in script["tables"][name])
        flink.execute_sql(f"CREATE TEMPORARY TABLE {name} ({columns}) {files(folder / f'{name}.json')}")

    def keep(name, query):
        flink.execute_sql(f"CREATE TABLE {name} {files(folder / 'flink' / name)} AS {query}").wait()

    for view in script["views"]:
        if view["keep"]:
            keep(view["name"], view["query"])
        else:
            flink.execute_sql(f"CREATE TEMPORARY VIEW {view['name']} AS {view['query']}")
    keep("features", script["select"])


if __name__ == "__main__":
    main(*sys.argv[1:])
