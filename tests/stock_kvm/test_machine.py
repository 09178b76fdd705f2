"""The emulated machine itself: it boots, has KVM, and reports faithfully."""

from pathlib import Path

from tests.harness import Result
from tests.stock_kvm.machine import Command, StockKvmMachine


def test_reports_output_status_and_time_limits(tmp_path: Path) -> None:
    """Also the proof that a failed command is not reported as a success."""
    data = tmp_path / "data"
    data.write_bytes(bytes(range(256)) * 100)
    machine = StockKvmMachine({"data": data})
    results = machine.run([
        Command(("cat", "/data")),
        Command(("sh", "-c", "echo out; echo err >&2; exit 7")),
        Command(("sleep", "30"), limit_s=1),
        Command(("/missing",)),
        Command(("test", "-c", "/dev/kvm")),
        Command(("cat", "/sys/module/kvm_amd/parameters/npt")),
    ])  # fmt: skip
    assert results[0] == Result(0, data.read_bytes(), b"")
    assert results[1] == Result(7, b"out\n", b"err\n")
    assert results[2] is not None
    assert results[2].status == 137
    assert results[3] is not None
    assert results[3].status == 127
    assert results[4] == Result(0, b"", b"")
    assert results[5] == Result(0, b"Y\n", b"")
