// The server of test_http2_node.py. What it does with a request is in the path; what it saw, and what it shall do to its
// sessions, it is asked and told by lines of JSON on standard input.
'use strict';

const crypto = require('node:crypto');
const http2 = require('node:http2');
const readline = require('node:readline');

const server = http2.createSecureServer(JSON.parse(process.argv[2]));
const sockets = [];
const sessions = new Map(); // open ones, each with its number
const seen = []; // an entry for each request
const held = []; // what ends a response that waits for "release"
const refused = new Set();
let count = 0;
let running = 0;
let peak = 0;

const payload = (size) => Buffer.alloc(size, Buffer.from([...Array(251).keys()]));

server.on('secureConnection', (socket) => sockets.push(socket));

server.on('session', (session) => {
  sessions.set(session, ++count);
  session.on('error', () => {});
  session.on('close', () => sessions.delete(session));
});

function note(request) {
  const { stream } = request;
  const entry = {
    session: stream ? sessions.get(stream.session) : null,
    stream: stream ? stream.id : null,
    version: request.httpVersion,
    alpn: request.socket.alpnProtocol,
    method: request.method,
    path: request.url,
    headers: { ...request.headers },
    code: null, // with which the stream was closed
  };
  seen.push(entry);
  if (stream) {
    stream.on('error', () => {});
    stream.on('close', () => { entry.code = stream.rstCode; });
  }
  return entry;
}

function digest(request, response) {
  const hash = crypto.createHash('sha256');
  let size = 0;
  request.on('data', (chunk) => { hash.update(chunk); size += chunk.length; });
  request.on('end', () => {
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify({ size, sha256: hash.digest('hex'), trailers: request.trailers }));
  });
}

const actions = {
  digest,
  bytes(request, response, size) {
    response.setHeader('content-length', size);
    response.end(request.method === 'HEAD' ? undefined : payload(Number(size)));
  },
  // The body comes back as it arrives, the trailers behind it.
  echo(request, response) {
    request.pipe(response, { end: false });
    request.on('end', () => {
      response.addTrailers(request.trailers);
      response.end();
    });
  },
  status(request, response, code) {
    response.statusCode = Number(code);
    response.end(code);
  },
  // Where the session began with a request to somebody else, that is misdirected.
  own(request, response) {
    const first = seen.find((entry) => entry.session === sessions.get(request.stream.session));
    response.statusCode = first.headers[':authority'] === request.authority ? 200 : 421;
    response.end(request.authority);
  },
  hints(request, response) {
    response.writeEarlyHints({ link: '</style.css>; rel=preload; as=style' });
    response.stream.additionalHeaders({ ':status': 102 });
    response.end('after the hints');
  },
  // The head and a part of the body, then a reset with this code.
  reset(request, response, code) {
    response.write(payload(1000), () => response.stream.close(Number(code)));
  },
  // Refused where it comes for the first time, or always.
  refuse(request, response, which) {
    if (which === 'always' || !refused.has(which)) {
      refused.add(which);
      response.stream.close(http2.constants.NGHTTP2_REFUSED_STREAM);
    } else {
      response.end(which);
    }
  },
  // The head and a part of the body; the rest after "release".
  hold(request, response, name) {
    request.resume();
    response.write(name);
    held.push(() => response.end(' released'));
  },
  // Answers so late that others come meanwhile; "peak" tells how many.
  crowd(request, response) {
    peak = Math.max(peak, ++running);
    setTimeout(() => { running--; response.end(); }, 5);
  },
};

server.on('request', (request, response) => {
  note(request);
  const [, action, argument] = request.url.split('/');
  actions[action](request, response, argument);
});

server.on('checkContinue', (request, response) => {
  const entry = note(request);
  if (request.url === '/unwanted') {
    response.statusCode = 417;
    response.end();
    return;
  }
  entry.continued = true;
  response.writeContinue();
  digest(request, response);
});

// Extended CONNECT (RFC 8441): what comes in goes back.
server.on('connect', (request) => {
  note(request);
  request.stream.respond({ ':status': 200 });
  request.stream.pipe(request.stream);
});

const commands = {
  report: () => ({
    seen,
    sessions: [...sessions.values()],
    ended: sockets.filter((socket) => socket.writableFinished || socket.destroyed).length,
  }),
  // How many requests /crowd met at a time since it was last asked.
  peak: () => { const most = peak; peak = 0; return most; },
  release: () => held.splice(0).forEach((end) => end()),
  // Gracefully: GOAWAY, and the end once all streams are over.
  close: () => [...sessions.keys()].forEach((session) => session.close()),
  destroy: () => [...sessions.keys()].forEach((session) => session.destroy()),
  goaway: ({ code = 0, last = 0 }) => [...sessions.keys()].forEach((session) => session.goaway(code, last)),
  settings: (settings) => [...sessions.keys()].forEach((session) => session.settings(settings)),
  // Frames of extensions (RFC 7838, RFC 8336), of which clients that do not know them take no notice.
  announce: () => [...sessions.keys()].forEach((session) => {
    session.altsvc('h2=":8000"', 'https://elsewhere.test');
    session.origin('https://elsewhere.test');
  }),
  // Answers once each client has.
  ping: () => Promise.all([...sessions.keys()].map((session) => new Promise((resolve, reject) => {
    session.ping((error) => (error ? reject(error) : resolve()));
  }))).then((answers) => answers.length),
};

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
  const [number, command, argument] = JSON.parse(line);
  const answer = await commands[command](argument);
  console.log(`ANSWER ${number} ${JSON.stringify(answer ?? null)}`);
}).on('close', () => process.exit());

server.listen(0, '127.0.0.1', () => console.log(`LISTENING ${server.address().port}`));
