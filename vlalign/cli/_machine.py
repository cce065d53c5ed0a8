"""Facts about this machine, as plain data: what `vlalign doctor` prints."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """System, cores, and bytes of memory and of disk (where the current directory is)."""
    disk = shutil.disk_usage(Path.cwd())
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": cores(),
        **memory(),
        "disk_bytes": disk.total,
        "disk_free_bytes": disk.free,
    }


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> dict[str, int]:
    """Bytes of RAM: `ram_bytes`, `ram_free_bytes`, and a container's `ram_limit_bytes` if set."""
    page = os.sysconf("SC_PAGE_SIZE")
    found = {"ram_bytes": page * os.sysconf("SC_PHYS_PAGES")}
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        found["ram_free_bytes"] = page * os.sysconf("SC_AVPHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        found["ram_limit_bytes"] = int(text)
    return found


def devices() -> list[dict[str, Any]]:
    """The devices that jax sees: id, platform, kind, bytes of memory (None: it does not tell)."""
    import jax

    rows = []
    for device in jax.devices():
        stats = device.memory_stats() or {}
        rows.append(
            {
                "id": device.id,
                "platform": device.platform,
                "kind": device.device_kind,
                "memory_bytes": stats.get("bytes_limit"),
                "memory_used_bytes": stats.get("bytes_in_use"),
            }
        )
    return rows
