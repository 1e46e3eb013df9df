"""What this machine gives: cores that this process may use, and whether something listens at an address."""

import os
import socket


def usable_cpus() -> int:
    """Cores this process may run on, at least one."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1))


def answers(host: str, port: int, patience_seconds: float) -> bool:
    """Whether something listens there; an IPv6 address may stand in brackets."""
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=patience_seconds):
            return True
    except OSError:
        return False
