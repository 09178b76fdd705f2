#!/bin/bash
# gunicorn with several workers and uvicorn, asked over loopback, told to reload and to stop.
cd "$(mktemp -d)" || exit 99
cat >wsgi.py <<'END'
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {len(body)}\n".encode()]
END
cat >asgi.py <<'END'
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    length = 0
    while True:
        message = await receive()
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": f"{scope['method']} {scope['path']} {length}\n".encode()})
END
cat >ask.py <<'END'
import concurrent.futures, http.client, sys, time
port = int(sys.argv[1])
def ask(n):
    for attempt in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", f"/{n}", b"x" * n * 1000)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except ConnectionRefusedError:
            time.sleep(0.1)
ask(0)
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    answers = list(pool.map(ask, range(60)))
print(len(answers), answers[0], answers[-1], all(a[0] == 200 for a in answers))
END
gunicorn --workers 3 --bind 127.0.0.1:8001 --log-level critical --pid gunicorn.pid wsgi:app & server=$!
python3 ask.py 8001
kill -HUP $server; python3 ask.py 8001
kill -TERM $server; wait $server; echo "gunicorn $?"
python3 -m uvicorn --host 127.0.0.1 --port 8002 --log-level critical asgi:app & server=$!
python3 ask.py 8002
kill -TERM $server; wait $server; echo "uvicorn $?"
