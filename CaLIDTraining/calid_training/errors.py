"""What the user can mend, told in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from calid.errors import DEBUG_VARIABLE, CalidError


class UsageError(ValueError):
    """Data, settings or runs that were given do not fit together; the message says which, and what to do."""


def told_in_one_line(main: Callable[[list[str] | None], int], program: str, arguments: list[str] | None) -> int:
    """The exit code of a program; 2 where the user's files, weights or settings are at fault, which one line then says.

    With `DEBUG_VARIABLE` the error goes on, and so shows its place.
    """
    try:
        return main(arguments)
    except (CalidError, UsageError, OSError) as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
