"""An OTLP receiver to be killed: writes down, for each request, a line of its spans' ids and "end", and answers then.

python otlp_sink.py grpc|http/protobuf PORT FILE    # prints a line when it listens
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def main(protocol: str, port: int, path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def take(body: bytes) -> bytes:
        request = ExportTraceServiceRequest.FromString(body)
        spans = [s for r in request.resource_spans for found in r.scope_spans for s in found.spans]
        # A line that was cut off in the middle has no end.
        os.write(file, f"\n{' '.join(span.span_id.hex() for span in spans)} end".encode())
        return b""

    if protocol == "grpc":
        import grpc

        class Service(grpc.GenericRpcHandler):
            def service(self, details: Any) -> Any:
                return grpc.unary_unary_rpc_method_handler(lambda body, context: take(body))

        server = grpc.server(ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers((Service(),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        print("up", flush=True)
        server.wait_for_termination()
    else:

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        print("up", flush=True)
        http.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
