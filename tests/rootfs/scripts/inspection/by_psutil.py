"""What psutil makes of /proc. Each line that is printed is the same wherever this runs."""

import os
import socket
import subprocess
import threading
import time

import psutil

me = psutil.Process()


def show(what: str, *values: object) -> None:
    print(what, *values, flush=True)


show("identity", me.pid == os.getpid(), me.ppid() == os.getppid(), me.name(), me.cmdline(), me.exe(), me.cwd())
show("state", me.status(), me.username(), me.uids(), me.gids(), me.terminal(), me.nice(), me.num_threads())
show("started", abs(me.create_time() - time.time()) < 600, psutil.boot_time() <= me.create_time() + 1)
memory = me.memory_info()
show("memory", memory.vms > memory.rss > memory.shared > 0, memory.text > 0, memory.data > 0)
full = me.memory_full_info()
show("full", 0 < full.uss <= full.pss <= full.rss, full.swap, 0 < me.memory_percent() < 100)
maps = me.memory_maps(grouped=False)
show("maps", any(m.path == "[stack]" for m in maps), any("python3" in m.path for m in maps), sum(m.rss for m in maps) > 1 << 20)
show("environment", me.environ() == dict(os.environ))
show("priority", me.ionice(), me.cpu_affinity() == sorted(os.sched_getaffinity(0)), me.rlimit(psutil.RLIMIT_NOFILE)[0])

began = time.process_time()
while time.process_time() < began + 0.3:
    pass
times = me.cpu_times()
show("processor", times.user + times.system >= 0.25, times.children_user >= 0, me.cpu_num() >= 0)
me.cpu_percent()
while time.process_time() < began + 0.6:
    pass
show("percent", 1 < me.cpu_percent() < 1000)
switches = me.num_ctx_switches()
for _ in range(20):
    time.sleep(0.001)
show("switches", me.num_ctx_switches().voluntary >= switches.voluntary + 20)
before = me.io_counters()
with open("/tmp/file", "w") as file:
    file.write("x" * 100_000)
    file.flush()
    after = me.io_counters()
    show("io", after.write_chars - before.write_chars >= 100_000, after.write_count > before.write_count)
    opened = [found for found in me.open_files() if found.path == "/tmp/file"]
    show("files", [(found.mode, found.position) for found in opened], me.num_fds() > 3)

stop = threading.Event()
threads = [threading.Thread(target=stop.wait) for _ in range(3)]
for thread in threads:
    thread.start()
show("threads", me.num_threads(), {t.id for t in me.threads()} == {t.native_id for t in threading.enumerate()})
stop.set()

child = subprocess.Popen(["sleep", "1000"])
[found] = me.children(recursive=True)
while found.name() != "sleep" or found.status() != psutil.STATUS_SLEEPING:
    time.sleep(0.01)
show("child", found.pid == child.pid, found.name(), found.status(), found.parent() == me, found.is_running())
found.suspend()
while found.status() != psutil.STATUS_STOPPED:
    time.sleep(0.01)
show("stopped", found.status())
found.resume()
found.nice(5)
show("nice", found.nice(), child.pid in psutil.pids(), psutil.pid_exists(child.pid))
found.kill()
show("ended", psutil.wait_procs([found], timeout=60)[0] == [found])
child.wait()
show("gone", psutil.pid_exists(child.pid), found.is_running())

listener = socket.create_server(("127.0.0.1", 8080))
client = socket.create_connection(("127.0.0.1", 8080))
server, _ = listener.accept()
six = socket.create_server(("::1", 8081), family=socket.AF_INET6)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 5353))
unix = socket.socket(socket.AF_UNIX)
unix.bind("/tmp/socket")


def port(end: tuple[object, ...]) -> object:
    return "any" if end and end[1] not in (8080, 8081, 5353) else end[1:]  # the client's is any


for connection in sorted(me.connections("inet"), key=lambda c: (c.type, c.status, c.laddr)):
    show("inet", connection.family.name, connection.type.name, connection.status, port(connection.laddr), port(connection.raddr))
show("unix", [c.laddr for c in me.connections("unix") if c.laddr])
show("all", {c.pid for c in psutil.net_connections("tcp4") if c.laddr.port == 8080} == {me.pid})

total = psutil.virtual_memory()
show("total", 0 < total.available <= total.total, 0 < total.used < total.total, 0 < total.percent < 100)
show("swap", psutil.swap_memory().total >= psutil.swap_memory().used)
cpu = psutil.cpu_times()
show("cpu", cpu.user > 0, cpu.system > 0, cpu.idle >= 0, psutil.cpu_count() >= 1, len(psutil.cpu_times(percpu=True)) == psutil.cpu_count())
first = psutil.cpu_stats()
show("stats", first.ctx_switches > 0, len(psutil.getloadavg()), psutil.cpu_count(logical=False) is not None)
usage = psutil.disk_usage("/tmp")
show("disk", usage.total >= usage.used + usage.free > 0, "/" in {p.mountpoint for p in psutil.disk_partitions(all=True)})
psutil.disk_io_counters()
network = psutil.net_io_counters(pernic=True)["lo"]
client.sendall(b"x" * 1000)
server.recv(1000, socket.MSG_WAITALL)
later = psutil.net_io_counters(pernic=True, nowrap=False)["lo"]
show("network", later.bytes_sent >= network.bytes_sent + 1000, later.bytes_recv >= network.bytes_recv + 1000, later.packets_sent > network.packets_sent)
show("interface", sorted(a.address for a in psutil.net_if_addrs()["lo"] if a.family != psutil.AF_LINK), psutil.net_if_stats()["lo"].isup, psutil.net_if_stats()["lo"].mtu)
psutil.cpu_freq(), psutil.users()
everything = [process.as_dict() for process in psutil.process_iter()]
show("everything", any(process["pid"] == me.pid and process["connections"] for process in everything))
