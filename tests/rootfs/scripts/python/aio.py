"""asyncio: timers, streams over loopback TCP and Unix sockets, executors, signals."""

import asyncio
import os
import signal
import socket


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, who: str) -> list[str]:
    answers = []
    for i in range(5):
        writer.write(f"{who} {i}\n".encode())
        answers.append((await reader.readline()).decode().strip())
    writer.close()
    await writer.wait_closed()
    return answers


async def main() -> None:
    order: list[int] = []

    async def later(delay_s: float, number: int) -> int:
        await asyncio.sleep(delay_s)
        order.append(number)
        return number

    print(await asyncio.gather(*(later(0.05 - i / 100, i) for i in range(5))), order)
    try:
        await asyncio.wait_for(asyncio.sleep(10), 0.02)
    except TimeoutError:
        print("timed out")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
    for answers in await asyncio.gather(*(talk(*c, f"c{i}") for i, c in enumerate(clients))):
        print(answers)
    server.close()
    unix = await asyncio.start_unix_server(serve, "/tmp/aio.sock")
    print(await talk(*await asyncio.open_unix_connection("/tmp/aio.sock"), "unix"))
    unix.close()
    try:
        await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError as error:
        print("refused", error.errno)

    big = os.urandom(1 << 20)
    left, right = socket.socketpair()
    _, sender = await asyncio.open_connection(sock=left)
    receiver, _ = await asyncio.open_connection(sock=right)
    sender.write(big)
    received, _ = await asyncio.gather(receiver.readexactly(1 << 20), sender.drain())
    print("a mebibyte", received == big)

    loop = asyncio.get_running_loop()
    print("executor", await loop.run_in_executor(None, sum, range(1000)))
    got = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, got.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(got.wait(), 10)
    print("signal")


asyncio.run(main())
