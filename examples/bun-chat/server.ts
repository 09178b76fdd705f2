// A chat room: what one WebSocket says, all hear; newcomers get the last hundred messages.
const MAX_HISTORY = 100;
const MAX_MESSAGE_CHARS = 2_000;
const history: string[] = [];
let visitors = 0;

const server = Bun.serve<{ name: string }>({
  port: 8080,
  hostname: "0.0.0.0",
  fetch(request, server) {
    const { pathname } = new URL(request.url);
    if (pathname === "/chat") {
      visitors += 1;
      if (server.upgrade(request, { data: { name: `visitor ${visitors}` } })) return undefined;
      return new Response("a WebSocket is wanted here\n", { status: 426 });
    }
    if (pathname === "/") return new Response(Bun.file(`${import.meta.dir}/index.html`));
    return new Response("not found\n", { status: 404 });
  },
  websocket: {
    maxPayloadLength: 16 * 1024,
    open(socket) {
      socket.subscribe("room");
      for (const line of history) socket.send(line);
    },
    message(socket, message) {
      const line = `${socket.data.name}: ${String(message).slice(0, MAX_MESSAGE_CHARS)}`;
      history.push(line);
      if (history.length > MAX_HISTORY) history.shift();
      server.publish("room", line);
    },
  },
});
console.log(`bun-chat on ${server.url}`);
