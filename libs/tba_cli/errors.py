"""How a command can fail, and the exit code that tells a script.

TbaError            1  failed
|- BadInput         2  what was given cannot be posted
|- ApiError            the API refused: 2 does not fit, 3 not allowed, 4 not found, 5 conflict, else 1
|- Unavailable      6  the API does not answer, or says "later"
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tba_cli.answers import Problem

_OF_STATUS: Final = {400: 2, 413: 2, 415: 2, 422: 2, 401: 3, 403: 3, 404: 4, 409: 5}


class TbaError(Exception):
    """The command did not do what it should; the message is for people."""

    exit_code: int = 1


class BadInput(TbaError):
    """What was given cannot be posted; the message names the place."""

    exit_code = 2


class Unavailable(TbaError):
    """The API does not answer, or cannot for now."""

    exit_code = 6


class ApiError(TbaError):
    """The API refused; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.exit_code = _OF_STATUS.get(problem.status, TbaError.exit_code)
        super().__init__(str(problem))
