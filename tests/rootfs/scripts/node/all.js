// Node.js: files, worker threads, crypto, timers, streams, loopback HTTP.
const fs = require('node:fs');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const crypto = require('node:crypto');
const http = require('node:http');
const zlib = require('node:zlib');
const os = require('node:os');

if (!isMainThread) {
  let sum = 0;
  for (let i = 0; i < 2e6; i++) sum = (sum + i * workerData) % 1000003;
  const shared = new Int32Array(workerData.shared ?? new SharedArrayBuffer(4));
  parentPort.on('message', (message) => { parentPort.postMessage(message.toUpperCase()); parentPort.close(); });
  parentPort.postMessage({ sum, shared: shared.length });
} else {
  main();
}

async function main() {
  fs.mkdirSync('/tmp/n/deep', { recursive: true });
  fs.writeFileSync('/tmp/n/file', 'content');
  fs.appendFileSync('/tmp/n/file', ' more');
  console.log(fs.readFileSync('/tmp/n/file', 'utf8'), fs.statSync('/tmp/n/file').size);
  await fs.promises.rename('/tmp/n/file', '/tmp/n/deep/renamed');
  console.log(await fs.promises.readdir('/tmp/n', { recursive: true }));
  try { fs.readFileSync('/tmp/missing'); } catch (error) { console.log(error.code); }
  await fs.promises.rm('/tmp/n', { recursive: true });
  console.log(fs.existsSync('/tmp/n'));
  const out = fs.createWriteStream('/tmp/stream');
  for (let i = 0; i < 1000; i++) out.write('x'.repeat(1000));
  await new Promise((done) => out.end(done));
  let bytes = 0;
  for await (const chunk of fs.createReadStream('/tmp/stream')) bytes += chunk.length;
  console.log('streamed', bytes);

  const results = await Promise.all([1, 2, 3].map((n) => new Promise((resolve, reject) => {
    const worker = new Worker(__filename, { workerData: n });
    const got = [];
    worker.on('message', (m) => { got.push(m); if (got.length === 1) worker.postMessage('hello'); });
    worker.on('error', reject);
    worker.on('exit', (code) => resolve([got[0].sum, got[1], code]));
  })));
  console.log(results);

  console.log(crypto.createHash('sha256').update('abc').digest('hex'));
  console.log(crypto.scryptSync('password', 'salt', 16).toString('hex'));
  const { publicKey, privateKey } = crypto.generateKeyPairSync('ed25519');
  console.log(crypto.verify(null, Buffer.from('m'), publicKey, crypto.sign(null, Buffer.from('m'), privateKey)));
  console.log(crypto.randomBytes(16).length, crypto.randomUUID() !== crypto.randomUUID());
  console.log(await new Promise((done) => crypto.pbkdf2('p', 's', 10000, 16, 'sha512', (e, key) => done(key.toString('hex')))));
  console.log(zlib.gunzipSync(zlib.gzipSync(Buffer.alloc(1e6, 'ab'))).length);

  const order = [];
  await new Promise((done) => {
    setTimeout(() => { order.push('timeout 20'); done(); }, 20);
    setTimeout(() => order.push('timeout 1'), 1);
    setImmediate(() => order.push('immediate'));
    process.nextTick(() => order.push('tick'));
    Promise.resolve().then(() => order.push('promise'));
  });
  console.log(order.slice(0, 2), order.at(-1));

  const server = http.createServer((request, response) => {
    let body = '';
    request.on('data', (chunk) => { body += chunk; });
    request.on('end', () => response.end(`${request.method} ${request.url} ${body.length}`));
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  const base = `http://127.0.0.1:${server.address().port}`;
  console.log(await (await fetch(`${base}/a`)).text());
  console.log(await Promise.all([1, 2, 3, 4].map(async (i) => (await fetch(`${base}/${i}`, { method: 'POST', body: 'x'.repeat(i * 10000) })).text())));
  server.closeAllConnections();
  server.close();
  console.log(os.platform(), os.arch(), process.memoryUsage().rss > 1e6, os.cpus().length >= 1);
  // Memory that grows and is collected.
  let kept = [];
  for (let i = 0; i < 50; i++) { kept.push(new Array(1e4).fill(i)); if (i % 10 === 0) kept = []; }
  console.log(new Intl.NumberFormat('de').format(1234567.8), [3, 1, 2].toSorted());
  process.on('exit', (code) => console.log('exit', code));
  process.exitCode = 5;
}
