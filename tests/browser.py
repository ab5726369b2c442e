"""A headless Chromium that a test steers: the protocol of DevTools through two pipes, without any package for it."""

import base64
import json
import os
import shutil
import subprocess
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# A machine may be slow, so these end a test only where the browser hangs.
ANSWER_SECONDS = 120
# --no-sandbox: containers run tests as root, and the pages are our own.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def chromium():
    """Return the path of a Chromium; skips the test where there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    return path


class Browser:
    """One page in a browser, and all that went wrong on it."""

    def __init__(self, profile):
        """Start it.

        Args:
            profile: Folder of its own, which is made.
        """
        # The protocol uses the file descriptors 3 and 4, which the shell makes of the ordinary pipes.
        command = ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', "sh"]
        flags = [*FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [*command, chromium(), *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        os.set_blocking(self._process.stdout.fileno(), False)
        self._buffer = b""
        self._events = []
        self._number = 0
        self._session = None
        try:
            target = self._send("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._send(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """End the browser."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()

    def open(self, path):
        """Load a file and wait until it is there."""
        self._events.clear()
        self._send("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())

    def run(self, script):
        """Run an expression, or the promise that it returns, and return its JSON value; its exception is raised."""
        answer = self._send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key, code, text=""):
        """Press and release a key, where the focus is."""
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self._send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **extra)

    def screen(self, width, height, scheme="light"):
        """Set the window's size in CSS pixels, and the colours that the reader prefers."""
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path, whole=False):
        """Write what is seen, or the whole page, as PNG."""
        shot = self._send("Page.captureScreenshot", captureBeyondViewport=whole, **(self._whole() if whole else {}))
        path.write_bytes(base64.b64decode(shot["data"]))

    def problems(self):
        """Return what the console was told and what was asked of the network since the page was opened."""
        self.run("0")
        found = []
        for event in self._events:
            method, params = event["method"], event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                found.append(params)
            elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("data:", "file:")):
                found.append(params["request"]["url"])
            elif method == "Page.javascriptDialogOpening":
                found.append(params)
        return found

    def _whole(self):
        size = self._send("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _send(self, method, **params):
        """Call a method and return its result; what else arrives is kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._events.append(answer)

    def _read(self):
        end = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self._buffer:
            block = self._process.stdout.read(1 << 20)
            if block:
                self._buffer += block
                continue
            assert block is None and self._process.poll() is None, "the browser has ended"
            assert time.monotonic() < end, "the browser does not answer"
            time.sleep(0.005)
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)
