"""Bodies of requests and the pictures in them: bounded in bytes, seconds and pixels, and few at a time."""

import asyncio
import ctypes
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from PIL import Image
from starlette.requests import Request

from cobra.util.errors import UserError
from cobra.util.fetch_image import MAX_BYTES, decode_image

MAX_PIXELS = 64_000_000
"""Pixels of an image at most: phones take 12 to 50 million. Pillow needs 4 bytes each, and as many again to turn it."""

# Pictures that come, or wait for their turn to be decoded, at a time: of a file at most MAX_BYTES is held of each.
_AT_ONCE = 4
_SECONDS = 300.0
_SILENT_SECONDS = 30.0
# Bytes of bodies that are held at a time.
_HELD_BYTES = 4 * MAX_BYTES

Result = TypeVar("Result")


class TooManyUploadsError(Exception):
    """Others send more at the moment than is held."""


async def read_body(request: Request, limit: int, what: str, hold: Callable[[int], None] = lambda size: None) -> bytes:
    """Return the body of a request; `hold` is called with the size of every block that comes.

    Raises:
        UserError: It is larger than `limit` bytes, does not come whole within five minutes, or stops for half of one.
        starlette.requests.ClientDisconnect: It breaks off.
    """
    data, clock = bytearray(), asyncio.get_running_loop().time
    end = clock() + _SECONDS
    try:
        async with asyncio.timeout_at(min(clock() + _SILENT_SECONDS, end)) as timer:
            async for block in request.stream():
                timer.reschedule(min(clock() + _SILENT_SECONDS, end))
                hold(len(block))
                data += block
                if len(data) > limit:
                    raise UserError(f"{what} is larger than the {limit:,} bytes that are taken")
    except TimeoutError as error:
        raise UserError(
            f"{what} did not come whole within {_SECONDS:.0f} seconds, or nothing of it for {_SILENT_SECONDS:.0f}: try "
            "again"
        ) from error
    return bytes(data)


class Uploads:
    """Decodes uploaded images, one after the other, and reduces each to what is kept of it."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._held = 0
        # One thread: as many pictures are decoded at a time, and their memory is used again.
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decoder")

    @asynccontextmanager
    async def body(self, request: Request, limit: int, what: str) -> AsyncIterator[bytes]:
        """Hold the body of a request for a while; nobody waits for another's.

        Raises:
            TooManyUploadsError: There is no room for it beside those that are held.
            UserError: As :func:`read_body`.
            starlette.requests.ClientDisconnect: As :func:`read_body`.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            held += size
            self._held += size
            if self._held > _HELD_BYTES:
                raise TooManyUploadsError("others are sending large pictures: try again")

        try:
            yield await read_body(request, limit, what, hold)
        finally:
            self._held -= held

    async def receive(self, request: Request, reduce: Callable[[Image.Image], Result]) -> Result:
        """Return what `reduce` keeps of the image that is a request's body.

        Raises:
            UserError: It is not a picture, or exceeds :data:`MAX_BYTES` or :data:`MAX_PIXELS`; or as `reduce`.
            starlette.requests.ClientDisconnect: It breaks off.
        """
        async with self._slots:
            return await self.reduce(await read_body(request, MAX_BYTES, "the picture"), reduce)

    async def reduce(self, data: bytes, reduce: Callable[[Image.Image], Result]) -> Result:
        """Return what `reduce` keeps of an image's file; a UserError as :meth:`receive`."""
        return await asyncio.get_running_loop().run_in_executor(self._decoder, _reduce, data, reduce)


def _reduce(data: bytes, reduce: Callable[[Image.Image], Result]) -> Result:
    try:
        return reduce(decode_image(data, "the file", MAX_PIXELS))
    finally:
        # glibc would keep what is freed: 0.4 GB after a picture of 50 million pixels.
        with suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
