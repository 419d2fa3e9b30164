// The contender that is Node itself: its https.Agent or one session of its http2, with the same protocol on standard
// input as benchmarks.worker.
import http2 from "node:http2";
import https from "node:https";
import readline from "node:readline";

const EXPECTED = "Hello, world!";

function whole(stream, status, resolve) {
  const pieces = [];
  stream.on("data", (piece) => pieces.push(piece));
  stream.on("end", () => resolve({ status: status(), body: Buffer.concat(pieces).toString("latin1") }));
}

function overHTTP1(target, job) {
  const url = new URL(target.url + job.path);
  const options = { ca: target.ca, agent: new https.Agent({ keepAlive: !job.fresh, maxSockets: job.in_flight }) };
  return () =>
    new Promise((resolve, reject) => {
      https
        .get(url, options, (response) => {
          response.on("error", reject);
          whole(response, () => response.statusCode, resolve);
        })
        .on("error", reject);
    });
}

function overHTTP2(target, job) {
  const session = http2.connect(target.url, { ca: target.ca });
  return (path = job.path) =>
    new Promise((resolve, reject) => {
      let status;
      const stream = session.request({ ":path": path });
      stream.on("response", (headers) => (status = headers[":status"]));
      stream.on("error", reject);
      whole(stream, () => status, resolve);
    });
}

async function several(count, request, facts) {
  for (let done = 0; done < count; done += 1) {
    const { status, body } = await request();
    if (status !== 200) throw new Error(`status ${status}`);
    if (facts) facts[body] = (facts[body] ?? 0) + 1;
    else if (body !== EXPECTED) throw new Error(`unexpected body ${body}`);
  }
}

// The server says after each turn that it was HTTP/2, and that all requests came over one connection.
let last;
async function witnessed(count, request) {
  const { body } = await request("/connection");
  const [protocol, connection, number] = body.split(" ");
  const expected = last && `HTTP/2.0 ${last.connection} ${last.number + count + 1}`;
  if (protocol !== "HTTP/2.0" || (last && body !== expected)) throw new Error(`${body}, expected ${expected}`);
  last = { connection, number: Number(number) };
  return { protocol: "HTTP/2", connections: 1 };
}

async function turn(count, job, request) {
  const facts = job.mode === "facts" ? {} : null;
  const cpu = process.cpuUsage();
  const began = process.hrtime.bigint();
  const share = count / job.in_flight;
  await Promise.all(Array.from({ length: job.in_flight }, () => several(share, request, facts)));
  const wall = Number(process.hrtime.bigint() - began) / 1e9;
  const { user, system } = process.cpuUsage(cpu);
  const seen = job.http2 ? await witnessed(count, request) : {};
  return [count, wall, (user + system) / 1e6, 0, facts ? { tls: facts, ...seen } : seen];
}

let job, request;
for await (const line of readline.createInterface({ input: process.stdin })) {
  const said = JSON.parse(line);
  if (job === undefined) {
    job = said.job;
    request = (job.http2 ? overHTTP2 : overHTTP1)(said.target, job);
    if (job.http2) await witnessed(0, request);
  } else {
    console.log(JSON.stringify(await turn(said, job, request)));
  }
}
process.exit(0);
