// Replays every golden vector of an exported contract on a server, by the contract alone:
//   node replay.mjs DIRECTORY PORT
// Prints what it did as JSON, and ends with 1 if anything differed by as much as a bit.
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { Contract, Limiter, number } from './limiter.mjs';
import { ServerError, connect, encode } from './resp.mjs';
import { Waiting } from './waiting.mjs';

const KEY = 'key';
const LOOK = '-inf';
/** What a step says that is to be done; all else in it is the answer. */
const ASKED = {
  quota: ['quota'], admit: ['by', 'cost', 'patience'], look: ['by', 'cost'], call: ['by', 'cost'],
  adjust: ['rule', 'delta', 'slot'], penalty: ['length'], undo: ['promise'], withdraw: ['promise'],
};

/** A number as C prints it by %.17g. */
export function text(value) {
  if (!Number.isFinite(value)) return value > 0 ? 'inf' : '-inf';
  if (value === 0) return '0';
  const [digits, power] = value.toExponential(16).split('e');
  const short = (all) => (all.includes('.') ? all.replace(/\.?0+$/, '') : all);
  if (power < -4 || power >= 17) {
    const size = Math.abs(power);
    return `${short(digits)}e${power < 0 ? '-' : '+'}${size < 10 ? '0' : ''}${size}`;
  }
  return short(value.toFixed(16 - power));
}

/** What both kinds of timelines share. */
class Replay {
  constructor(limiter, prefix) {
    this.limiter = limiter;
    this.contract = limiter.contract;
    this.prefix = prefix;
    this.tickets = [];
  }

  /** Decide, and read what is stored thereafter; all in one go. */
  async decide(parts, now, plans) {
    const keys = parts.map(([plan]) => this.contract.key(plan, KEY));
    const groups = parts.map(([plan, op, a, b, more]) => this.contract.group(op, plan, a, b, more));
    const replies = this.limiter.run(keys, groups, now);
    const states = this.states(plans);
    return [await replies, await states];
  }

  /** What is stored, as text; null where nothing is. */
  async states(plans) {
    const { states } = this.contract.layout;
    return Promise.all(plans.map(async (plan) => {
      const list = states[plan.rule].type === 'list';
      const key = this.contract.key(plan, KEY);
      const words = list ? ['LRANGE', key, '0', '-1'] : ['GET', key];
      const found = await this.limiter.connection.send(encode(words));
      if (found instanceof ServerError) throw found;
      return list ? (found.length ? found : null) : found && [found];
    }));
  }
}

/** One quota of one key. */
class Single extends Replay {
  constructor(limiter, prefix, algorithm, timeline) {
    super(limiter, prefix);
    this.algorithm = algorithm;
    this.bind(timeline.quota);
  }

  bind(quota) {
    this.plan = this.contract.plan(this.algorithm, quota, { prefix: this.prefix });
    this.plans = [this.plan];
  }

  async do(step) {
    const answer = {};
    let found, states;
    const decide = (op, a, b) => this.decide([[this.plan, op, a, b]], step.now, this.plans);
    switch (step.do) {
      case 'quota':
        this.bind(step.quota);
        states = await this.states(this.plans);
        break;
      case 'admit': case 'look': {
        const patience = step.do === 'look' ? LOOK : number(step.patience);
        [[found], states] = await decide('admit', step.cost, patience);
        const decision = this.limiter.decision(found, number(patience));
        for (const field of this.contract.layout.replies.decision.told) answer[field] = text(decision[field]);
        if (decision.admitted && decision.wait > 0) {
          answer.promise = this.tickets.push(decision) - 1;
          answer.slot = text(decision.slot);
        }
        break;
      }
      case 'adjust':
        [[found], states] = await decide('adjust', step.delta, step.slot === null ? '' : number(step.slot));
        answer.changed = this.limiter.changed(found);
        break;
      case 'undo': {
        const { written, before } = this.tickets[step.promise];
        [[found], states] = await decide('undo', written, before);
        answer.changed = this.limiter.changed(found);
        break;
      }
      default: throw new Error(`unknown step: ${step.do}`);
    }
    [answer.state] = states;
    return answer;
  }
}

/** Several rules of one key, and its penalties. */
class Joint extends Replay {
  constructor(limiter, prefix, _, timeline) {
    super(limiter, prefix);
    this.rules = timeline.quota.map(([algorithm, quota, cost], place) => ({
      plan: this.contract.plan(algorithm, quota, { prefix, name: `rule${place}` }), cost,
    }));
    this.hold = this.contract.hold({ prefix });
    this.plans = [...this.rules.map((rule) => rule.plan), this.hold];
    this.waiting = new Waiting();
  }

  async do(step) {
    const answer = {};
    const change = async (plan, a, b) => {
      const [[found]] = await this.decide([[plan, 'adjust', a, b]], step.now, []);
      return this.limiter.changed(found);
    };
    switch (step.do) {
      case 'admit': case 'look': case 'call':
        await this.ask(step, answer);
        break;
      case 'adjust':
        answer.changed = await change(this.rules[step.rule].plan, step.delta, step.slot === null ? '' : number(step.slot));
        break;
      case 'penalty':
        answer.changed = await change(this.hold, step.length, '');
        break;
      case 'withdraw':
        await this.waiting.leave(this.tickets[step.promise], (undo, part) => (undo
          ? this.decide([[part.plan, 'undo', part.written, part.before]], step.now, [])
          : this.decide([[part.plan, 'adjust', -part.cost, part.slot]], step.now, [])
        ).then(([[found]]) => this.limiter.changed(found)));
        break;
      default: throw new Error(`unknown step: ${step.do}`);
    }
    answer.states = await this.states(this.plans);
    return answer;
  }

  /** A call by several rules; `call` asks for no ticket. */
  async ask(step, answer) {
    const rules = step.by.map((place) => this.rules[place]);
    const patience = { look: -Infinity, call: 0 }[step.do] ?? number(step.patience);
    const op = step.do === 'call' ? 'admit' : 'ticket';
    const costs = rules.map((rule) => (step.cost ? rule.cost ?? step.cost : 0));
    const parts = rules.map((rule, place) => [rule.plan, op, costs[place], patience, true]);
    parts.push([this.hold, op, step.cost, patience, false]);
    const [replies] = await this.decide(parts, step.now, []);
    const looks = replies.map((reply) => this.limiter.decision(reply, patience));
    const wait = Math.max(...looks.map((look) => look.wait));
    const taken = step.cost > 0 && wait <= patience;
    const tickets = taken ? rules.map((rule, place) => (
      { ...looks[place], plan: rule.plan, cost: costs[place], wait }
    )).filter((ticket) => ticket.slot !== undefined) : [];

    if (taken && wait > 0) {
      answer.promise = this.tickets.push(tickets) - 1;
      answer.wait = text(wait);
      answer.told = looks.map((look) => (
        this.contract.layout.replies.decision.told.map((field) => text(look[field])).join(' ')
      ));
      tickets.forEach((ticket) => this.waiting.add(ticket));
    } else {
      const held = looks.pop();  // it says nothing but when it ends, and that to every rule
      answer.limited = wait > 0 && step.cost > 0;
      answer.held = held.reset_after > 0;
      answer.told = looks.map((look) => [
        text(answer.held ? 0 : look.remaining),
        text(Math.max(look.reset_after, held.reset_after, 0) / 1e6),
        text(Math.max(look.wait, held.wait, 0) / 1e6),
      ].join(' '));
    }
    if (op === 'ticket' && tickets.length) answer.slots = tickets.map((ticket) => text(ticket.slot));
  }
}

/** The files that are not what the manifest says. */
function altered(directory, manifest) {
  const wrong = Object.keys(manifest.sha256).filter((name) => (
    createHash('sha256').update(readFileSync(join(directory, name))).digest('hex') !== manifest.sha256[name]
  ));
  const script = createHash('sha1').update(readFileSync(join(directory, 'decide.lua'))).digest('hex');
  if (script !== manifest.script_sha1) wrong.push('script_sha1');
  return wrong.map((file) => ({ file, reason: 'not as in the manifest' }));
}

async function replay(directory, port) {
  const manifest = JSON.parse(readFileSync(join(directory, 'manifest.json'), 'utf8'));
  const failures = altered(directory, manifest);
  const connection = await connect(port);
  const limiter = new Limiter(new Contract(directory), connection);
  const run = `contract-${randomBytes(6).toString('hex')}`;
  let timelines = 0;
  let steps = 0;
  for (const file of Object.keys(manifest.sha256).filter((name) => name.startsWith('vectors/'))) {
    const vectors = JSON.parse(readFileSync(join(directory, file), 'utf8'));
    const kind = vectors.algorithm === 'joints' ? Joint : Single;
    for (const [number, timeline] of vectors.timelines.entries()) {
      const prefix = `${run}:${basename(file)}:${number}`;
      const rig = new kind(limiter, prefix, vectors.algorithm, timeline);
      const used = new Map();
      timelines += 1;
      for (const [place, step] of timeline.steps.entries()) {
        const asked = ['now', 'do', ...ASKED[step.do] ?? []];
        const expected = Object.fromEntries(Object.entries(step).filter(([name]) => !asked.includes(name)));
        let answer;
        try {
          answer = await rig.do(step);
        } catch (error) {
          answer = { error: String(error) };
        }
        for (const plan of rig.plans) used.set(plan.template, plan);
        steps += 1;
        if (!isDeepStrictEqual(answer, expected)) {
          failures.push({ file, timeline: timeline.name, step: place, expected, answer });
          break;  // the rest of it goes by other states
        }
      }
      for (const plan of used.values()) await limiter.reset(plan, limiter.contract.key(plan, KEY)).catch(() => {});
    }
  }
  connection.close();
  return { timelines, steps, failures };
}

const [directory, port] = process.argv.slice(2);
if (!(Number(port) > 0)) {
  console.error('usage: node replay.mjs DIRECTORY PORT');
  process.exit(2);
}
try {
  const summary = await replay(directory, Number(port));
  console.log(JSON.stringify(summary));
  process.exitCode = summary.failures.length ? 1 : 0;
} catch (error) {
  console.error(error.message);
  process.exitCode = 2;
}
