"""Computes features with Spark, by the script that `marquee features sql --engine spark` writes.

    spark.py SCRIPT FOLDER

FOLDER holds fact_events.parquet and fact_requests.parquet; spark/features/ is made there.
"""

import json
import pathlib
import sys

from pyspark.sql import SparkSession


def main(script, folder):
    folder = pathlib.Path(folder).resolve()
    script = json.loads(pathlib.Path(script).read_text())
    spark = (
        SparkSession.builder.master("local[2]")
        .appName("marquee")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.memory", "3g")
        .config("spark.sql.shuffle.partitions", "4")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.warehouse.dir", str(folder / "warehouse"))
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    for table in ("fact_events", "fact_requests"):
        spark.read.parquet(str(folder / f"{table}.parquet")).createOrReplaceTempView(table)
    for view in script["views"]:
        made = spark.sql(view["query"])
        if view["keep"]:
            path = str(folder / "spark" / view["name"])
            made.write.mode("overwrite").parquet(path)
            made = spark.read.parquet(path)
        made.createOrReplaceTempView(view["name"])
    features = spark.sql(script["select"])
    features.coalesce(1).write.mode("overwrite").json(str(folder / "spark" / "features"))
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
