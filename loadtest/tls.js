// Over TLS: clients that keep their connection, then clients that make one for each request. Versions, handshakes and latency.
//
// k6 resumes no session, so each new connection is a whole handshake: the dearest case.

import { Counter, Trend } from 'k6/metrics';
import { render, fill } from './lib/bodies.js';
import { duration, settings as read } from './lib/settings.js';
import { HONEST, NO_REFUSALS, options as shared } from './lib/options.js';
import { count, newId, post } from './lib/send.js';
import { summary } from './lib/summary.js';

const settings = read({ duration: '60s', rate: 50, vus: 20, events: 20, p99: 500 });
const slowest = settings.number('HANDSHAKE_MS', 500);
const version = __ENV.TLS_VERSION || '';
const half = settings.duration / 2;
const body = render(settings.events);
const key = settings.keys[0];
const phases = ['kept', 'new'];

const handshakes = new Counter('sluice_handshakes');
const handshake = new Trend('sluice_handshake_ms');
// Answers over another version than 1.2 and 1.3, or than the one that was asked for; plain HTTP is one.
const others = new Counter('sluice_other_version');

export { setup } from './lib/send.js';

function phase(name, from) {
  return {
    executor: 'constant-arrival-rate', exec: name, rate: settings.rate, timeUnit: '1s', preAllocatedVUs: settings.vus,
    startTime: duration(from), duration: duration(half), gracefulStop: '60s',
  };
}

export const options = {
  ...shared({
    phases,
    scenarios: { kept: phase('kept', 0), new: phase('fresh', half) },
    thresholds: {
      ...HONEST,
      ...NO_REFUSALS,
      'sluice_acked{phase:kept}': ['count>0'],
      'sluice_acked{phase:new}': ['count>0'],
      // A connection of each client, and no more.
      'sluice_handshakes{phase:kept}': [`count<=${settings.vus}`],
      'sluice_handshakes{phase:new}': ['count>0'],
      sluice_handshake_ms: [`p(99)<${slowest}`],
      sluice_other_version: ['count==0'],
      sluice_ack_ms: [`p(99)<${settings.p99}`],
    },
  }),
  ...(version ? { tlsVersion: version } : {}),
};

function sendOver(run, name, headers) {
  const id = newId(run);
  const tags = { phase: name };
  const all = { 'Content-Type': 'application/x-ndjson', Authorization: `Bearer ${key}`, ...headers };
  const response = post(settings, { key, text: fill(body, id), params: { headers: all } });
  count(settings, { id, events: body.events, response, tags });
  if (response.timings.tls_handshaking > 0) {
    handshakes.add(1, tags);
    handshake.add(response.timings.tls_handshaking, tags);
  }
  const spoken = response.tls_version || '';
  if (version ? spoken !== version : !['tls1.2', 'tls1.3'].includes(spoken)) others.add(1, tags);
}

export function kept({ run }) {
  sendOver(run, 'kept', {});
}

export function fresh({ run }) {
  sendOver(run, 'new', { Connection: 'close' });
}

export const handleSummary = summary('tls', settings, { phases, figures: { sluice_handshakes: 'handshakes', sluice_handshake_ms: 'slowest handshake, ms' } });
