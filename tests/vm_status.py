"""What a VM process answers `query`, for tests that play one."""

STATUS: dict[str, object] = {
    "state": "running",
    "instance": None,
    "busy": False,
    "stored_generation": None,
    "still": False,
    "template": None,
    "warm_base": None,
    "seeded": False,
    "unlinked": False,
    "memory_bytes": 1 << 20,
    "cpu_ns": 1,
}
