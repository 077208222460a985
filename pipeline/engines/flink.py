"""Computes features with Flink, by the script that `marquee features sql --engine flink` writes.

    flink.py SCRIPT FOLDER JAR...

SCRIPT also says where the two tables are (`--source`); flink/features/ is made in FOLDER. The JARs are our
functions (pipeline/engines/java), and the connector of Kafka if the tables are there.
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


def main(script, folder, *jars):
    folder = pathlib.Path(folder).resolve()
    script = json.loads(pathlib.Path(script).read_text())
    flink = TableEnvironment.create(EnvironmentSettings.in_batch_mode())
    settings = flink.get_config()
    settings.set("parallelism.default", "1")
    settings.set("table.local-time-zone", "UTC")
    settings.set("pipeline.jars", ";".join(pathlib.Path(jar).resolve().as_uri() for jar in jars))
    for name, of in FUNCTIONS.items():
        flink.execute_sql(f"CREATE TEMPORARY SYSTEM FUNCTION {name} AS '{of}' LANGUAGE JAVA")
    for statement in script["sources"]:
        flink.execute_sql(statement)

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
