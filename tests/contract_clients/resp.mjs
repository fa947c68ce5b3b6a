// One connection to a server that speaks RESP, as Redis does: requests out, replies in their order.
import { connect as open } from 'node:net';

/** What the server says instead of a reply. */
export class ServerError extends Error {}

/** A request in bytes: strings and buffers. */
export function encode(words) {
  const parts = [Buffer.from(`*${words.length}\r\n`)];
  for (const word of words) {
    const bytes = Buffer.isBuffer(word) ? word : Buffer.from(word);
    parts.push(Buffer.from(`$${bytes.length}\r\n`), bytes, Buffer.from('\r\n'));
  }
  return Buffer.concat(parts);
}

/** The value at a place and the place after it; undefined if it has not all come yet. */
function decode(bytes, at) {
  const end = bytes.indexOf('\r\n', at);
  if (end < 0) return undefined;
  const text = bytes.toString('latin1', at + 1, end);
  let next = end + 2;
  switch (String.fromCharCode(bytes[at])) {
    case '+': return [text, next];
    case '-': return [new ServerError(text), next];
    case ':': return [Number(text), next];
    case '$': {
      const size = Number(text);
      if (size < 0) return [null, next];
      if (bytes.length < next + size + 2) return undefined;
      return [bytes.toString('utf8', next, next + size), next + size + 2];
    }
    case '*': {
      if (Number(text) < 0) return [null, next];
      const items = [];
      for (let left = Number(text); left > 0; left--) {
        const found = decode(bytes, next);
        if (found === undefined) return undefined;
        items.push(found[0]);
        next = found[1];
      }
      return [items, next];
    }
    default: throw new Error(`no reply: ${bytes.toString('latin1', at, at + 40)}`);
  }
}

/** Connect to a port of this machine. `send` resolves to the reply, a ServerError included. */
export async function connect(port) {
  const socket = open(port, '127.0.0.1');
  await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject));
  socket.setNoDelay(true);
  const waiting = [];
  let rest = Buffer.alloc(0);
  socket.on('data', (bytes) => {
    rest = rest.length ? Buffer.concat([rest, bytes]) : bytes;
    let at = 0;
    for (let found; at < rest.length && (found = decode(rest, at)) !== undefined; at = found[1]) {
      waiting.shift().resolve(found[0]);
    }
    rest = rest.subarray(at);
  });
  const lost = (error) => waiting.splice(0).forEach((each) => each.reject(error));
  socket.on('error', lost).on('close', () => lost(new Error('the server closed the connection')));
  return {
    send(bytes) {
      return new Promise((resolve, reject) => {
        waiting.push({ resolve, reject });
        socket.write(bytes);
      });
    },
    close: () => socket.end(),
  };
}
