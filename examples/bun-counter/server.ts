// Counts requests in memory: after a sleep the count goes on, as the VM's memory does.
import { readFileSync } from "node:fs";

let count = 0;

// Read at every request: one start of this program may live on in many instances.
function instance(): string {
  return JSON.parse(readFileSync("/run/torpor/instance", "utf8")).uuid;
}

function answer(): Response {
  return new Response(`{"instance":"${instance()}","count":${count}}`, {
    headers: { "content-type": "application/json" },
  });
}

const server = Bun.serve({
  port: 8080,
  hostname: "0.0.0.0",
  fetch(request) {
    const { pathname } = new URL(request.url);
    if (request.method !== "GET") return new Response("method not allowed\n", { status: 405 });
    if (pathname === "/peek") return answer();
    if (pathname !== "/") return new Response("not found\n", { status: 404 });
    count += 1;
    return answer();
  },
});
console.log(`bun-counter on ${server.url}`);
