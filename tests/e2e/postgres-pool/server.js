// Keeps a pool of connections to PostgreSQL, and uses one for each request: /use?n=N inserts N and answers with what
// is known of the pool. No connection may be lost: the pool never opens another one in its place.
const http = require("http");
const { Pool } = require("pg");

const SIZE = 8;
const pool = new Pool({
  host: process.env.DATABASE_HOST,
  port: Number(process.env.DATABASE_PORT),
  user: "app",
  database: "postgres",
  max: SIZE,
  idleTimeoutMillis: 0,
});
const errors = [];
let connected = 0;
pool.on("connect", () => { connected += 1; });
pool.on("error", (error) => errors.push(String(error)));

async function fill() {
  const clients = await Promise.all(Array.from({ length: SIZE }, () => pool.connect()));
  clients.forEach((client) => client.release());
}

async function use(number) {
  const client = await pool.connect();
  try {
    const { rows } = await client.query(
      "insert into used (n, backend) values ($1, pg_backend_pid()) returning backend", [number]);
    return rows[0].backend;
  } finally {
    client.release();
  }
}

http.createServer(async (request, response) => {
  const url = new URL(request.url, "http://localhost");
  try {
    if (url.pathname === "/fill") await fill();
    const backend = url.pathname === "/use" ? await use(Number(url.searchParams.get("n"))) : null;
    response.end(JSON.stringify({ backend, connected, open: pool.totalCount, errors }));
  } catch (error) {
    response.statusCode = 500;
    response.end(String(error));
  }
}).listen(8080, "0.0.0.0");
