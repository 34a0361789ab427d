"""A machine's metadata as EC2 answers it, with a spot notice that ends the machine so many seconds after it is asked.

``python -m tests.support.metadata SECONDS`` serves it on a free port of 127.0.0.1 and prints its address.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

TOKEN = "a-token"


class Metadata(BaseHTTPRequestHandler):
    """Refuses those without a token, as HttpTokens: required does."""

    seconds: float | None = None
    """Until the end; None answers 404, as where nothing is announced."""

    def do_PUT(self) -> None:
        """A token."""
        asked = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if asked else 400, TOKEN)

    def do_GET(self) -> None:
        """The notice."""
        if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
            self._answer(401, "")
        elif self.path != "/latest/meta-data/spot/instance-action" or self.seconds is None:
            self._answer(404, "")
        else:
            ends = datetime.fromtimestamp(time.time() + self.seconds, UTC)
            self._answer(200, json.dumps({"action": "terminate", "time": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}))

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


def serve(seconds: float | None) -> HTTPServer:
    """A server that is to be run, at ``server_port``."""
    return HTTPServer(("127.0.0.1", 0), type("Announced", (Metadata,), {"seconds": seconds}))


if __name__ == "__main__":
    server = serve(float(sys.argv[1]))
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
