"""Bodies of requests and the pictures in them: bounded in bytes, seconds and pixels, and few at a time."""

import asyncio
import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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

Result = TypeVar("Result")


async def read_body(request: Request, limit: int, what: str) -> bytes:
    """Return the body of a request.

    Raises:
        UserError: It is larger than `limit` bytes, or does not come whole within five minutes.
        starlette.requests.ClientDisconnect: It breaks off.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(_SECONDS):
            async for block in request.stream():
                data += block
                if len(data) > limit:
                    raise UserError(f"{what} is larger than the {limit:,} bytes that are taken")
    except TimeoutError as error:
        raise UserError(f"{what} did not come whole within {_SECONDS:.0f} seconds: try again") from error
    return bytes(data)


class Uploads:
    """Decodes uploaded images, one after the other, and reduces each to what is kept of it."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_AT_ONCE)
        # One thread: as many pictures are decoded at a time, and their memory is used again.
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decoder")

    async def receive(self, request: Request, reduce: Callable[[Image.Image], Result]) -> Result:
        """Return what `reduce` keeps of the image that is a request's body.

        Raises:
            UserError: It is not a picture, or exceeds :data:`MAX_BYTES` or :data:`MAX_PIXELS`; or as `reduce`.
            starlette.requests.ClientDisconnect: It breaks off.
        """
        async with self._slots:
            data = await read_body(request, MAX_BYTES, "the picture")
            return await asyncio.get_running_loop().run_in_executor(self._decoder, _reduce, data, reduce)


def _reduce(data: bytes, reduce: Callable[[Image.Image], Result]) -> Result:
    try:
        return reduce(decode_image(data, "the file", MAX_PIXELS))
    finally:
        # glibc would keep what is freed: 0.4 GB after a picture of 50 million pixels.
        with suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
