# SPDX-License-Identifier: Apache-2.0
"""Peers that behave as told: an HTTP server in this process whose answers a test writes."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Peer:
    """What a peer was asked, and where it is."""

    def __init__(self, url):
        self.url, self.asked = url, []


@contextlib.contextmanager
def peer(answer):
    """Serves `answer(path, body or None, number of the request) -> (status, bytes or value)`."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            with lock:
                seen.asked.append((self.path, body, dict(self.headers)))
                number = len(seen.asked)
            status, said = answer(self.path, body, number)
            said = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has heard enough
                self.wfile.write(said)

        do_GET = do_POST = reply

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    seen = Peer(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()


def says(words):
    """A judge's answer as an OpenAI-compatible endpoint gives it."""
    return 200, {"choices": [{"message": {"role": "assistant", "content": words}}]}
