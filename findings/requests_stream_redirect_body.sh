#!/usr/bin/env bash
# requests 2.34.2 reads the whole body of a redirect, with stream=True and allow_redirects=False too.
#
# One would guess that nothing but the headers is read before the caller asks for the body, as it is for a 200. For a 302 the
# body is in memory when get returns. (A download that looks at the address before it goes on meets this.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet requests==2.34.2
"$folder/venv/bin/python" - <<'PY'
import http.server
import threading

import requests

BODY = b"x" * 2_000_000


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302 if self.path == "/moved" else 200)
        self.send_header("Location", "/here")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
read = {}
for path in ("/moved", "/here"):
    with requests.Session() as session:
        session.trust_env = False
        url = f"http://127.0.0.1:{server.server_port}{path}"
        response = session.get(url, stream=True, allow_redirects=False)
        before = response.raw.tell()
        read[response.status_code] = before
        assert response.content == BODY
print("bytes of the body read when get returned, by status:", read)
assert read[302] == len(BODY) and read[200] == 0
server.shutdown()
PY
