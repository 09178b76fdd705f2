// Bun: TypeScript, bun:sqlite, Bun.file, Bun.serve answering its own fetch, workers, hashing.
import { Database } from "bun:sqlite";
import { mkdirSync, readdirSync, rmSync } from "node:fs";

interface Row { id: number; name: string }
enum Colour { Red = 1, Green }

const db = new Database("/tmp/test.sqlite");
db.run("create table t (id integer primary key, name text)");
const insert = db.prepare("insert into t (name) values (?)");
db.transaction((names: string[]) => names.forEach((name) => insert.run(name)))(["a", "b", "c"]);
console.log(db.query<Row, []>("select * from t order by id desc").all(), Colour.Green);
db.close();

await Bun.write("/tmp/file.txt", "hello from Bun");
const file = Bun.file("/tmp/file.txt");
console.log(await file.text(), file.size, await file.exists(), await Bun.file("/nothing").exists());
await Bun.write("/tmp/copy.txt", file);
console.log(await Bun.file("/tmp/copy.txt").slice(0, 5).text());
mkdirSync("/tmp/d/e", { recursive: true });
console.log(readdirSync("/tmp/d"));
rmSync("/tmp/d", { recursive: true });

using server = Bun.serve({
  port: 0,
  hostname: "127.0.0.1",
  async fetch(request) {
    const url = new URL(request.url);
    if (url.pathname === "/json") return Response.json({ method: request.method, n: (await request.text()).length });
    if (url.pathname === "/file") return new Response(file);
    return new Response("not found", { status: 404 });
  },
});
console.log(await (await fetch(`${server.url}json`, { method: "POST", body: "x".repeat(100_000) })).json());
console.log(await (await fetch(`${server.url}file`)).text(), (await fetch(`${server.url}other`)).status);
const answers = await Promise.all(Array.from({ length: 50 }, (_, i) => fetch(`${server.url}json?${i}`).then((r) => r.json())));
console.log(answers.length, answers.every((a: { n: number }) => a.n === 0));

console.log(new Bun.CryptoHasher("sha256").update("abc").digest("hex"), Bun.hash("abc"));
console.log(await Bun.password.verify("secret", await Bun.password.hash("secret", { algorithm: "bcrypt", cost: 4 })));
console.log(Bun.gunzipSync(Bun.gzipSync(Buffer.from("abc".repeat(1000)))).length);
const began = performance.now();
await Bun.sleep(20);
console.log("slept", performance.now() - began >= 19);

const source = "postMessage([...Array(1e5).keys()].reduce((a, b) => (a + b) % 9973, 0));";
const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "application/javascript" })));
console.log("worker", await new Promise((done) => { worker.onmessage = (event) => done(event.data); }));
worker.terminate();
let text = "";
for (let i = 0; i < 2e5; i++) text += String.fromCharCode(97 + (i % 26));
console.log(text.length, Bun.version.split(".").length, process.platform);
process.exit(6);
