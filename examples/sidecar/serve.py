"""The sidecar of `app.py`: one /metrics for all its workers, at http://127.0.0.1:9090/metrics.

    python examples/sidecar/serve.py --listen unix:/tmp/asyncinspect.sock --state /tmp/asyncinspect.state
    python examples/sidecar/serve.py 'logs/*.jsonl' --state /tmp/asyncinspect.state

SIGKILL it and start it again: the counters go on.
"""

from __future__ import annotations

import argparse
import signal

from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.sidecar import Sidecar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="*", help="logs to follow, as paths or globs")
    parser.add_argument("--listen", help='where to take lines, such as "unix:/tmp/asyncinspect.sock"')
    parser.add_argument("--state", help="a file to keep the counters in")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds until a process that is gone counts as gone")
    parser.add_argument("--local", action="store_true", help="whoever wrote the logs did so on this machine")
    parser.add_argument("--metrics", default="127.0.0.1:9090", help="where to serve the metrics")
    arguments = parser.parse_args()
    sidecar = Sidecar(
        arguments.logs,
        listen=arguments.listen,
        state=arguments.state,
        grace=arguments.grace,
        local=arguments.local or None,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sidecar.stop())
    with PrometheusExporter(sidecar, update_interval=0) as exporter:
        print(exporter.start_server(arguments.metrics).url, flush=True)
        sidecar.run()


if __name__ == "__main__":
    main()
