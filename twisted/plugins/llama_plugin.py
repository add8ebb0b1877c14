"""What ``twistd --help`` lists: one line a service, nothing imported until it is asked for."""

from llama.hangup import ServiceMaker

collector = ServiceMaker(
    "LLAMA collector",
    "llama.collector.tap",
    "Sends probes and measures loss and latency.",
    "llama-collector",
)
reflector = ServiceMaker(
    "LLAMA reflector", "llama.reflector.tap", "Answers probes.", "llama-reflector"
)
scraper = ServiceMaker(
    "LLAMA scraper",
    "llama.scraper.tap",
    "Moves measurements into a time-series database.",
    "llama-scraper",
)
web = ServiceMaker("LLAMA web", "llama.web.tap", "Shows the matrix in a browser.", "llama-web")
