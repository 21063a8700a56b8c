"""The engine's errors: what happened, where, and what to do about it.

Every error a user can cause or mend is a `CalidError`. The classes say who can act; the code is stable and is what the
Slicer module translates; the message names the place and the measured value; the remedy says what to do.
"""

from __future__ import annotations

DEBUG_VARIABLE = "CALID_DEBUG"
"""Environment variable by which users ask where in the code an error arose."""

# CUDA's and Metal's words, those of torch's own allocator, oneDNN's; then Python's, C++'s and the system's.
OUT_OF_MEMORY_WORDS = (
    *("out of memory", "can't allocate memory", "could not create a primitive", "defaultcpuallocator"),
    *("memoryerror", "bad_alloc", "cannot allocate memory"),
)


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

    def about(self, name: str) -> CalidError:
        """The same error with the name of the file in front that it speaks of."""
        return type(self)(self.code, f"{name}: {self.message}", self.remedy)


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


def out_of_memory(*, together: int = 1) -> ResourceError:
    """The error for a run that does not fit this machine's memory, or for that many frames that are made together."""
    if together > 1:
        return ResourceError(
            "memory",
            f"There is not enough memory for {together} frames that are made together, one slice of each at a time.",
            "Choose fewer frames (--frames A:B), the model that makes every frame by itself (--model 2d) or a region "
            "of interest, or close other programs.",
        )
    return ResourceError(
        "memory",
        "There is not enough memory for this run.",
        "Choose a region of interest, fewer frames or a smaller factor, or close other programs.",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, numpy or torch says that there was not enough memory; knows torch by its words."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and says_out_of_memory(str(error))


def says_out_of_memory(text: str) -> bool:
    """Whether the words of an error, or of a process that ended, say that there was not enough memory."""
    lower = text.lower()
    return any(words in lower for words in OUT_OF_MEMORY_WORDS)


class Cancelled(Exception):  # noqa: N818 (an outcome, not an error)
    """The run was cancelled; nothing was written."""
