// The contender that is Node itself: its https.Agent, with the same protocol on standard input as benchmarks.worker.
import https from "node:https";
import readline from "node:readline";

const EXPECTED = "Hello, world!";

function request(url, options, facts) {
  return new Promise((resolve, reject) => {
    https.get(url, options, (response) => {
      const pieces = [];
      response.on("data", (piece) => pieces.push(piece));
      response.on("error", reject);
      response.on("end", () => {
        const body = Buffer.concat(pieces).toString("latin1");
        if (response.statusCode !== 200) reject(new Error(`status ${response.statusCode}`));
        else if (facts) facts[body] = (facts[body] ?? 0) + 1;
        else if (body !== EXPECTED) reject(new Error(`unexpected body ${body}`));
        resolve();
      });
    }).on("error", reject);
  });
}

async function several(count, url, options, facts) {
  for (let done = 0; done < count; done += 1) await request(url, options, facts);
}

async function turn(count, job, url, options) {
  const facts = job.mode === "facts" ? {} : null;
  const cpu = process.cpuUsage();
  const began = process.hrtime.bigint();
  const share = count / job.in_flight;
  await Promise.all(Array.from({ length: job.in_flight }, () => several(share, url, options, facts)));
  const wall = Number(process.hrtime.bigint() - began) / 1e9;
  const { user, system } = process.cpuUsage(cpu);
  return [count, wall, (user + system) / 1e6, 0, facts ? { tls: facts } : {}];
}

let job, url, options;
for await (const line of readline.createInterface({ input: process.stdin })) {
  const said = JSON.parse(line);
  if (job === undefined) {
    job = said.job;
    url = new URL(said.target.url + job.path);
    options = { ca: said.target.ca, agent: new https.Agent({ keepAlive: !job.fresh, maxSockets: job.in_flight }) };
  } else {
    console.log(JSON.stringify(await turn(said, job, url, options)));
  }
}
process.exit(0);
