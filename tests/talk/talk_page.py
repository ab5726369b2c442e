"""The page to talk on, served on loopback from a thread, and a model that a test lets speak piece by piece."""

import socket
import threading
from queue import Queue

from cobra.serving.engine import Engine
from cobra.talk.conversation import Figures
from cobra.talk.options import TalkFlags
from cobra.talk.page import TalkServer, web_server


class Served:
    """A TalkServer while the block lasts; :attr:`url` is its page's."""

    def __init__(self, vlm, flags=None, name="a model", access=None, welcome=None, engine=None):
        self.engine = engine or Engine(vlm)
        self._talk = TalkServer(vlm, flags or TalkFlags(max_new_tokens=8), name, access, welcome, self.engine)
        self._server = web_server(self._talk.app())
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()
        self._talk.close()
        self._socket.close()

    def as_uri(self):
        """As a path has it, for a browser."""
        return self.url


class Script:
    """Takes the place of Conversation: every answer is what the test puts into `said`, up to None."""

    def __init__(self):
        self.said = Queue()
        self.asked = []
        self.closed = Queue()

    def __call__(self, vlm, image=None):
        return _ScriptedConversation(self, image)


class _ScriptedConversation:
    def __init__(self, script, image):
        self._script, self._image = script, image
        self.figures = Figures(49152)
        self.turns, self.has_image = [], image is not None

    def ask(self, question, options, seed, between_steps):
        self._script.asked.append((question, options, self._image))
        self.figures = Figures(49152, read=1234, written=63, seconds=0.5)
        return self._pieces(question, between_steps)

    def _pieces(self, question, between_steps):
        whole, answer = False, ""
        try:
            while (piece := self._script.said.get(timeout=60)) is not None:
                between_steps()
                answer += piece
                yield piece
            whole = True
        finally:
            self.turns.append((question, answer))
            self._script.closed.put(whole)
