"""A TLS connection over loopback, both ends in this program, and one that is refused."""

import socket
import ssl
import threading

server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server_context.load_cert_chain("/srv/localhost.pem")
listener = socket.create_server(("127.0.0.1", 0))
refusals: list[str] = []


def serve() -> None:
    for _ in range(2):
        connection, _ = listener.accept()
        try:
            with server_context.wrap_socket(connection, server_side=True) as secure:
                while data := secure.recv(65536):
                    secure.sendall(data[::-1])
        except ssl.SSLError as error:
            refusals.append(error.reason)
            connection.close()


thread = threading.Thread(target=serve)
thread.start()
context = ssl.create_default_context(cafile="/srv/localhost.pem")
context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
with socket.create_connection(listener.getsockname()) as plain:
    with context.wrap_socket(plain, server_hostname="localhost") as secure:
        print(secure.version(), secure.cipher()[2] >= 128)
        secure.sendall(b"abcdef")
        print(secure.recv(100))
        secure.sendall(b"x" * 100_000)
        received = 0
        while received < 100_000:
            received += len(secure.recv(65536))
        print(received)
with socket.create_connection(listener.getsockname()) as plain:
    try:
        ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
    except ssl.SSLCertVerificationError as error:
        print("client:", error.verify_message)
thread.join()
print("server:", refusals)
