"""The databases that the scraper writes to: one line each, nothing imported until it is asked for.

Writers of others are found the same way: see ``docs/writers.rst``.
"""

from llama.interfaces import WriterMaker

influxdb = WriterMaker("influxdb", "llama.scraper.writers.influxdb", "InfluxDB 1.x")
influxdb2 = WriterMaker("influxdb2", "llama.scraper.writers.influxdb2", "InfluxDB 2.x and 3.x")
victoriametrics = WriterMaker(
    "victoriametrics", "llama.scraper.writers.victoriametrics", "VictoriaMetrics"
)
sqlite = WriterMaker("sqlite", "llama.scraper.writers.sqlite", "a SQLite file on this machine")
file = WriterMaker("file", "llama.scraper.writers.file", "JSON lines or line protocol in a file")
