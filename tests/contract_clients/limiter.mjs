// A limiter that knows of nothing but an exported contract: layout.json and decide.lua.
import { createHash, createHmac } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ServerError, encode } from './resp.mjs';

const fill = (template, values) => template.replace(/<(\w+)>/g, (_, name) => values[name]);

/** How to put things: keys, groups and requests, as the layout says. */
export class Contract {
  constructor(directory) {
    this.layout = JSON.parse(readFileSync(join(directory, 'layout.json'), 'utf8'));
    this.script = readFileSync(join(directory, 'decide.lua'));
  }

  /** A quota such as "7/10ms burst 5". */
  quota(text) {
    const { units } = this.layout.quota;
    const [, limit, count, unit, burst] = /^(\d+)\/(\d*)([a-z]+)(?: burst (\d+))?$/.exec(text);
    return { limit: +limit, period: (+count || 1) * units[unit], burst: +(burst ?? limit) };
  }

  /** An algorithm with a quota, and the keys it has: all that does not change from call to call. */
  plan(algorithm, quota, { prefix = this.layout.key.default_prefix, name = null } = {}) {
    const of = this.layout.algorithms[algorithm];
    const { limit, period, burst } = this.quota(quota);
    const numbers = { limit, period, burst: { limit, burst }[of.burst] };
    const template = fill(name ? this.layout.key.named : this.layout.key.plain,
      { prefix, algorithm, period, name, tag: '<tag>' });
    return { rule: of.rule, ...numbers, capacity: numbers.burst, template };
  }

  /** What penalties leave behind. */
  hold({ prefix = this.layout.key.default_prefix } = {}) {
    const { rule, limit, period, burst } = this.layout.hold;
    const template = fill(this.layout.key.hold, { prefix, tag: '<tag>' });
    return { rule, limit, period, burst, template };
  }

  /** What stands for a text of the caller's: escaped, or as a digest. */
  written(text, secret) {
    if (secret === true) return createHash('sha256').update(text).digest('hex');
    if (secret) return createHmac('sha256', secret).update(text).digest('hex');
    return this.layout.key.escapes.reduce((done, [one, other]) => done.replaceAll(one, other), text);
  }

  /** The key in Redis. */
  key(plan, key, { slot = null, secret = null, mark = null } = {}) {
    const { tags } = this.layout.key;
    const tag = slot === null
      ? (mark === null ? tags.plain : tags.mark)
      : (mark === null ? tags.in_a_slot : tags.mark_in_a_slot);
    const values = { key: this.written(key, secret), slot: this.written(slot ?? '', secret), mark };
    return fill(plan.template, { tag: fill(tag, values) });
  }

  /** A number of µs or of tokens, as text. */
  whole(value) {
    const { positive, negative } = this.layout.formats.infinite;
    if (value === Infinity) return positive;
    if (value === -Infinity) return negative;
    return typeof value === 'string' ? value : BigInt(Math.trunc(value)).toString();
  }

  /** What is asked about one key; `more`: only together with the group after it. */
  group(op, plan, a, b, more = false) {
    const values = { op: op + (more ? this.layout.together.suffix : ''), ...plan, a, b };
    return this.layout.group.map((field) => this.whole(values[field]));
  }

  /** The request for groups and their keys. */
  request(keys, groups, { now = '', source = false } = {}) {
    const { layout, script } = this;
    const values = {
      script_sha1: [layout.script_sha1], script: [script], count: [String(keys.length)],
      keys, now: [this.whole(now)], groups: groups.flat(),
    };
    const words = layout.call[source ? 'unknown' : 'known'];
    return encode(words.flatMap((word) => (word[0] === '<' ? values[word.slice(1, -1)] : [word])));
  }
}

/** Decides on a server. */
export class Limiter {
  constructor(contract, connection) {
    this.contract = contract;
    this.connection = connection;
  }

  /** The replies, one a group. */
  async run(keys, groups, now = '') {
    const ask = (source) => this.connection.send(this.contract.request(keys, groups, { now, source }));
    let replies = await ask(false);
    if (replies instanceof ServerError && replies.message.startsWith(this.contract.layout.call.if_unknown)) {
      replies = await ask(true);
    }
    if (replies instanceof ServerError) throw replies;
    return replies;
  }

  /** A decision by its fields, and whether it was admitted. */
  decision(reply, patience) {
    if (!Array.isArray(reply)) throw new Error(reply);
    const { told, booked } = this.contract.layout.replies.decision;
    const fields = reply.length === booked.length ? booked : told;
    const found = Object.fromEntries(fields.map((field, place) => [field, reply[place]]));
    for (const field of told) found[field] = number(found[field]);
    return { ...found, admitted: found.wait <= patience };
  }

  async one(op, plan, key, a, b, now = '') {
    const { layout } = this.contract;
    return (await this.run([key], [this.contract.group(op, plan, a ?? layout.arguments.nothing, b ?? '')], now))[0];
  }

  /** Take a cost, within so many µs; patience '-inf' only looks. */
  async limit(plan, key, { cost = 1, patience = 0, now = '' } = {}) {
    return this.decision(await this.one('admit', plan, key, cost, patience, now), number(patience));
  }

  /** Charge, or give back. */
  async adjust(plan, key, delta, slot = '', now = '') {
    return this.changed(await this.one('adjust', plan, key, delta, slot, now));
  }

  /** Give back a promise, if nobody came after. */
  async undo(plan, key, { written, before }, now = '') {
    return this.changed(await this.one('undo', plan, key, written, before, now));
  }

  /** Forget a key. */
  async reset(plan, key) {
    return this.changed(await this.one('reset', plan, key));
  }

  changed(reply) {
    if (typeof reply === 'string') throw new Error(reply);
    return reply === this.contract.layout.replies.change.changed;
  }
}

/** A number of a reply, which may be text. */
export function number(value) {
  if (value === 'inf') return Infinity;
  return value === '-inf' ? -Infinity : Number(value);
}
