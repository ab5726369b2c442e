"""A server of plain files on loopback that misbehaves on demand."""

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """Serves `files` by path with ETag and ranges; `faults` holds what to do wrong, a request each."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.faults: list[tuple[str, int]] = []
        self.requests: list[dict[str, str]] = []
        self.version = "1"
        self.ranges = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                server.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler):
        self.requests.append({key.lower(): value for key, value in handler.headers.items()})
        fault, number = self.faults.pop(0) if self.faults else ("", 0)
        body = self.files.get(handler.path)
        if fault == "slow":
            time.sleep(number / 1000)
        if fault == "status" or body is None:
            handler.send_response(number or 404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        etag = f'"{self.version}"'
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if asked and self.ranges and handler.headers.get("If-Range", etag) == etag:
            start = int(asked[1])
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        if fault != "no length":
            handler.send_header("Content-Length", str(len(body) - start))
        handler.send_header("ETag", etag)
        handler.send_header("X-Repo-Commit", "0" * 40)
        handler.send_header("Connection", "close")
        handler.end_headers()
        if handler.command == "GET":
            end = start + number if fault == "drop" else len(body)
            handler.wfile.write(body[start:end])
        handler.close_connection = True

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.http.shutdown()
        self.http.server_close()
