// A tenant with a quota: 429 is honest, and whoever waits as it says is taken. First one client alone: each 429's
// Retry-After must be true, and what is taken must be what the quota gives, no more and not much less. Then several
// at once, which take it from each other: all that holds then is that every refusal is honest and nothing is lost.

import { sleep } from 'k6';
import { Counter, Trend } from 'k6/metrics';
import { render } from './lib/bodies.js';
import { duration, settings as read } from './lib/settings.js';
import { HONEST, NO_REFUSALS, options as shared } from './lib/options.js';
import { newId, send } from './lib/send.js';
import { summary } from './lib/summary.js';

const settings = read({ duration: '60s', vus: 4, events: 50, p99: 500 });
const least = settings.number('LEAST', 0.4);
const half = settings.duration / 2;
const body = render(settings.events);
const key = settings.keys[0];
const phases = ['alone', 'crowd'];

// Requests that were refused again though they came when they were told to, with nobody beside them.
const early = new Counter('sluice_early');
// What was taken over what the quota gives in that time: its burst, and its rate since.
const given = new Trend('sluice_quota_given');

export { setup } from './lib/send.js';

export const options = shared({
  phases,
  scenarios: {
    alone: { executor: 'per-vu-iterations', exec: 'alone', vus: 1, iterations: 1, maxDuration: duration(half + 60000) },
    crowd: { executor: 'constant-vus', exec: 'crowd', vus: settings.vus, startTime: duration(half + 5000), duration: duration(half), gracefulStop: '60s' },
  },
  thresholds: {
    ...HONEST,
    ...NO_REFUSALS,
    sluice_over: [],
    sluice_early: ['count==0'],
    sluice_quota_given: ['max<=1.01', `min>=${least}`],
    'sluice_over{phase:alone}': ['count>0'],
    'sluice_over{phase:crowd}': ['count>0'],
    'sluice_acked{phase:alone}': ['count>0'],
    'sluice_acked{phase:crowd}': ['count>0'],
    sluice_ack_ms: [`p(99)<${settings.p99}`],
  },
});

// q and w of `tenant-events` in RateLimit-Policy.
function quota(policy) {
  const found = policy.match(/"tenant-events";q=(\d+);[^,]*w=(\d+)/);
  return found ? { burst: Number(found[1]), rate: Number(found[1]) / Number(found[2]) } : null;
}

export function alone({ run }) {
  const start = Date.now();
  let taken = 0;
  let limits = null;
  while (Date.now() < start + half) {
    const id = newId(run);
    let told = send(settings, { key, body, id, tags: { phase: 'alone' } });
    if (told.ended === 'over') {
      sleep(told.retryAfter);
      told = send(settings, { key, body, id, tags: { phase: 'alone' } });
      if (told.ended === 'over') early.add(1);
    }
    limits = limits || quota(told.policy);
    if (told.ended === 'acked') taken += settings.events;
    else sleep(told.retryAfter);
  }
  if (limits) given.add(taken / (limits.burst + (limits.rate * (Date.now() - start)) / 1000));
}

// The same request until it is taken.
export function crowd({ run }) {
  const id = newId(run);
  for (;;) {
    const { ended, retryAfter } = send(settings, { key, body, id, tags: { phase: 'crowd' } });
    if (ended !== 'over') return;
    sleep(retryAfter);
  }
}

export const handleSummary = summary('quota', settings, { phases, figures: { sluice_early: 'refused again after the wait', sluice_quota_given: 'taken over what the quota gives' } });
