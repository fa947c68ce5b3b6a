// Shares keys with whoever else has the contract:
//   node share.mjs DIRECTORY PORT
// Each line in is a call in JSON, each line out its answer.
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { Contract, Limiter } from './limiter.mjs';
import { connect } from './resp.mjs';

const [directory, port] = process.argv.slice(2);
const contract = new Contract(directory);
const connections = await Promise.all([1, 2, 3, 4].map(() => connect(Number(port))));
const limiters = connections.map((connection) => new Limiter(contract, connection));
const [limiter] = limiters;

/** A plan by algorithm, quota, prefix and name. */
function bound([algorithm, quota, prefix, name]) {
  const hold = algorithm === contract.layout.hold.name;
  return hold ? contract.hold({ prefix }) : contract.plan(algorithm, quota, { prefix, name });
}

const calls = {
  limit: ({ plan, key, ...call }) => limiter.limit(plan, key, call),
  undo: ({ plan, key, promise }) => limiter.undo(plan, key, promise),
  adjust: ({ plan, key, delta, slot }) => limiter.adjust(plan, key, delta, slot),
  reset: ({ plan, key }) => limiter.reset(plan, key),

  /** Take a cost, and sleep until its slot. */
  async wait({ plan, key, ...call }) {
    const decision = await limiter.limit(plan, key, call);
    if (decision.admitted) await sleep(Math.ceil(decision.wait / 1000) + 1);  // timers may ring early
    return decision;
  },

  /** Call many times at once, over several connections; how many were admitted. */
  async crowd({ plan, key, attempts }) {
    const each = (_, place) => limiters[place % limiters.length].limit(plan, key);
    const decisions = await Promise.all(Array.from({ length: attempts }, each));
    return decisions.filter((decision) => decision.admitted).length;
  },

  /** Charge for a mark, unless it was there. */
  once({ plan, key, mark, length, delta }) {
    const groups = [contract.group('once', plan, length, 1), contract.group('adjust', plan, delta, '')];
    return limiter.run([mark, key], groups);
  },

  /** The bytes of a request. */
  request({ calls: asked, now, source }) {
    const plans = asked.map((each) => bound(each.plan));
    const keys = asked.map(({ key, keyed }, place) => contract.key(plans[place], key, keyed));
    const groups = asked.map(({ op, a, b, more }, place) => contract.group(op, plans[place], a, b, more));
    return contract.request(keys, groups, { now, source }).toString('base64');
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const call = JSON.parse(line);
  if (call.plan) {
    const { plan, key, keyed, mark } = call;
    call.plan = bound(plan);
    if (key !== undefined) call.key = contract.key(call.plan, key, keyed);
    if (mark !== undefined) call.mark = contract.key(call.plan, key, { ...keyed, mark });
  }
  let answer;
  try {
    answer = await calls[call.do](call);
  } catch (error) {
    answer = { error: String(error.message) };
  }
  console.log(JSON.stringify(answer));
}
connections.forEach((connection) => connection.close());
