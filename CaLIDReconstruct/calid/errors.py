"""The engine's errors: what happened, where, and what to do about it.

Every error a user can cause or mend is a `CalidError`. The classes say who can act; the code is stable and is what the
Slicer module translates; the message names the place and the measured value; the remedy says what to do.
"""


class CalidError(Exception):
    """Base of every error the engine reports in one line and exit code 2.

    Args:
        code: stable, lower-case and hyphenated, such as "uneven-spacing".
        message: what is wrong and where (file, slice, frame), with the measured value and the limit.
        remedy: what the user can do about it.
    """

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(code, message, remedy)
        self.code = code
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


class InputError(CalidError):
    """The input cannot be used as it is: mend or choose another file."""


class OutputError(CalidError):
    """The result cannot be written where it was asked for."""


class SettingsError(CalidError):
    """A setting is out of range or does not fit the input."""


class WeightsError(CalidError):
    """A model is missing, damaged or does not fit this version."""


class ResourceError(CalidError):
    """The machine lacks what is needed: memory, a device, a package."""


class Cancelled(Exception):  # noqa: N818 (an outcome, not an error)
    """The run was cancelled; nothing was written."""
