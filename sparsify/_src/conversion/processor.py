"""Which processor this is."""

import os
import platform
from functools import cache
from pathlib import Path


@cache
def described() -> dict[str, str]:
    """What the system says of the first core: its vendor, model and so on; as much as it does say."""
    wanted = ("vendor_id", "model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        first = ""
    pairs = (line.partition(":")[::2] for line in first.splitlines())
    found = {key.strip(): value.strip() for key, value in pairs if key.strip() in wanted}
    return found or {"model name": platform.processor() or platform.machine()}


def cores() -> int:
    """How many this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
