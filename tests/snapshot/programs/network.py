"""A program for a VM under test: answers on port 8080 with what it gets, and obeys lines on standard input.

Ready once it listens. `connect HOST PORT` makes a connection of its own, which it treats alike; `names` says of each
connection how it is or how it has ended.
"""

import json
import os
import socket
import threading
import time

ends = {}  # name: how it ended, None while it lasts


def echo(name, connection):
    ends[name] = None
    try:
        while data := connection.recv(65536):
            connection.sendall(data)
        ends[name] = "end"
    except OSError as error:
        ends[name] = os.strerror(error.errno)
    connection.close()


def serve(listener):
    for number in range(1 << 30):
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=(f"in{number}", connection), daemon=True).start()


def obey(line):
    command, *args = line.split()
    if command == "connect":
        connection = socket.create_connection((args[0], int(args[1])))
        name = f"out{args[1]}"
        threading.Thread(target=echo, args=(name, connection), daemon=True).start()
        return name
    if command == "names":
        return ends
    if command == "print":
        return "x" * int(args[0])
    if command == "later":
        os.write(1, b"soon\n")
        time.sleep(0.2)
        return "x" * int(args[0])
    raise ValueError(command)


def main():
    listener = socket.create_server(("", 8080))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    rest = b""
    while data := os.read(0, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            answer = json.dumps(obey(line.decode())) + "\n"
            while answer:
                answer = answer[os.write(1, answer.encode()) :]


main()
