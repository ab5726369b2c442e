"""Errors in OpenAI's form."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from cobra.talk.headers import HEADERS
from cobra.util.printable import printable

API_PREFIX = "/v1/"
"""Beginning of the paths that are answered in OpenAI's form."""

# Kinds of errors by their status.
_TYPES = {500: "server_error", 503: "server_error"}
_LONGEST = 2000
_LONGEST_NAME = 200


class ApiError(Exception):
    """An error that a client is told.

    Attributes:
        status: Status of the response.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Make an error; `param` is the parameter that is wrong and `code` the kind of error, in OpenAI's words."""
        super().__init__(message)
        self.status = status
        self._param, self._code, self._headers = param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the error as JSON has it."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        message = printable(str(self), _LONGEST)
        # A name of the request may be of any length, and hold halves of surrogate pairs.
        param = None if self._param is None else printable(self._param, _LONGEST_NAME)
        return {"error": {"message": message, "type": kind, "param": param, "code": self._code}}

    def response(self) -> JSONResponse:
        """Return the response."""
        return JSONResponse(self.body(), self.status, HEADERS | self._headers)
