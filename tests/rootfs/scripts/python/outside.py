"""What a program sees of connections to the outside. Arguments: an echo's port, and one where nobody listens."""

import errno
import select
import socket
import sys

ECHO, CLOSED = (("192.0.2.1", int(port)) for port in sys.argv[1:3])


def name(number):
    return errno.errorcode.get(number, str(number))


def attempt(what, work):
    try:
        print(what, work())
    except OSError as error:
        print(f"{what}: {name(error.errno)}")
    sys.stdout.flush()


def new(kind=socket.SOCK_STREAM):
    made = socket.socket(socket.AF_INET, kind)
    made.settimeout(60)
    return made


def tcp():
    with new() as s:
        s.connect(ECHO)
        got = 0
        for round in range(10):
            s.sendall(bytes(100_000))
            while got < (round + 1) * 100_000:
                got += len(s.recv(1 << 16))
        s.shutdown(socket.SHUT_WR)
        while piece := s.recv(1 << 16):
            got += len(piece)
        return f"{got} bytes from {s.getsockname()[0]}"


def unfinished(address, again):
    with new() as s:
        s.setblocking(False)
        first = name(s.connect_ex(address))
        poll = select.poll()
        poll.register(s, select.POLLOUT)
        events = poll.poll(60_000)[0][1]
        error = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        print(f"{first}, poll {events}, error {name(error)}", end="")
        if again:
            print(f", then {s.connect_ex(address)}, then {name(s.connect_ex(address))}", end="")
        print()


def connect(address, kind=socket.SOCK_STREAM):
    with new(kind) as s:
        s.connect(address)
        return "connected"


def udp():
    with new(socket.SOCK_DGRAM) as s:
        s.sendto(b"hello", ECHO)
        data, peer = s.recvfrom(100)
        return f"{data} from {peer[0]}"


def udp_connected():
    with new(socket.SOCK_DGRAM) as s:
        s.connect(ECHO)
        s.send(bytes(20_000))
        return len(s.recv(30_000))


def udp_refused():
    with new(socket.SOCK_DGRAM) as s:
        s.connect(CLOSED)
        s.send(b"x")
        return s.recv(10)


attempt("tcp", tcp)
attempt("refused", lambda: connect(CLOSED))
print("unfinished: ", end="")
unfinished(ECHO, True)
print("unfinished and refused: ", end="")
unfinished(CLOSED, False)
attempt("link-local", lambda: connect(("169.254.169.254", 80)))
attempt("this network", lambda: connect(("192.0.2.77", 80)))
attempt("loopback, not here", lambda: connect(("127.0.0.1", ECHO[1])))
attempt("udp", udp)
attempt("connected udp", udp_connected)
attempt("udp refused", udp_refused)
attempt("udp link-local", lambda: connect(("169.254.169.254", 53), socket.SOCK_DGRAM))
print("name", socket.gethostbyname("localhost"))
with open("/etc/hosts", "w"):
    pass  # from here on the host is asked
try:
    socket.gethostbyname("no-such-host.invalid")
except socket.gaierror as error:
    known = {socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_NODATA}
    print("no such name" if error.errno in known else error)
