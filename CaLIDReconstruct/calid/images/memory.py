"""Main memory that is free, and the question whether an image fits into it, asked before the memory is taken."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

from calid.errors import ResourceError

FALLBACK_FREE_BYTES = 2 * 1024**3


def need_memory(num_bytes: int) -> None:
    """Return if an image of so many bytes fits into the memory that is free.

    Args:
        num_bytes: all voxels, uncompressed.

    Raises:
        ResourceError: "memory"; the system would otherwise end the process, or another one, without a word.
    """
    free = free_system_bytes()
    if num_bytes > free:
        raise ResourceError(
            "memory",
            f"the image takes {num_bytes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free.",
            "Close other programs, or use a smaller image.",
        )


def free_system_bytes() -> int:
    """Main memory that programs can still get, files cached by the system counted as free."""
    try:
        system = platform.system()
        if system == "Linux":
            return available_on_linux(Path("/proc/meminfo").read_text(encoding="ascii"))
        if system == "Windows":
            return _available_on_windows()
        pages = subprocess.run(["vm_stat"], capture_output=True, text=True, check=True, timeout=5)
        return available_on_macos(pages.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return FALLBACK_FREE_BYTES


def available_on_linux(meminfo: str) -> int:
    """Bytes of the line MemAvailable, the kernel's own figure; MemFree leaves out what caches would give back."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
    if found is None:
        raise ValueError("there is no MemAvailable")
    return int(found.group(1)) * 1024


def available_on_macos(vm_stat: str) -> int:
    """Bytes of the pages that are free or given back without writing them to disk."""
    page = re.search(r"page size of (\d+) bytes", vm_stat)
    counts = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.$", vm_stat, re.MULTILINE)
    if page is None or not counts:
        raise ValueError("vm_stat says something else")
    return int(page.group(1)) * sum(map(int, counts))


def _available_on_windows() -> int:
    import ctypes

    # MEMORYSTATUSEX: its own size and the load (4 bytes each), then total and available physical memory (8 bytes each)
    # and five more figures of 8 bytes.
    status = (ctypes.c_uint64 * 8)(64)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
        raise OSError("GlobalMemoryStatusEx failed")
    return int(status[2])
