"""A local HTTP server that plays a judge, one scripted reply a request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from waiting import BOUND


@dataclass
class Server:
    """``script`` is taken from in order, its last entry for ever; ``requests`` is what came."""

    script: list[Any]
    address: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def next(self) -> Any:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


def chat(text: Any, finish: str | None = None) -> tuple[int, str]:
    """A chat completion that says ``text``, and why it ended."""
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]})


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # with the usual 5, the sixth caller at a time waits a second


@contextmanager
def serving(*script: Any) -> Iterator[Server]:
    """Replies are (status, body[, headers]), "hang", "trickle", "close", or a function of the request."""
    server, lock = Server(list(script)), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
                reply = server.next()
            _reply(self, server, reply(body) if callable(reply) else reply)

        def log_message(self, *_: object) -> None:
            pass

    http = _Http(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        http.shutdown()
        thread.join()
        http.server_close()


def _reply(handler: BaseHTTPRequestHandler, server: Server, reply: Any) -> None:
    if reply == "hang":
        server.released.wait(BOUND)
    elif reply == "trickle":
        _trickle(handler, server)
    elif reply != "close":
        status, body, *headers = reply
        handler.send_response(status)
        for name, value in headers[0].items() if headers else ():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body.encode())


def _trickle(handler: BaseHTTPRequestHandler, server: Server) -> None:
    """A byte every 20 ms, which keeps resetting a socket's own time-out."""
    handler.send_response(200)
    handler.end_headers()
    while not server.released.is_set():
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.02)
