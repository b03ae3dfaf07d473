// A burst of FACTOR times the usual rate. It may be refused, honestly; nothing may go wrong, and afterwards all is as before.

import { render } from './lib/bodies.js';
import { duration, settings as read } from './lib/settings.js';
import { HONEST, options as shared } from './lib/options.js';
import { newId, send } from './lib/send.js';
import { untilDrained, where } from './lib/server.js';
import { summary } from './lib/summary.js';

const settings = read({ duration: '60s', rate: 50, vus: 100, events: 100, p99: 1000 });
const factor = settings.number('FACTOR', 20);
const patience = settings.number('DRAIN_S', 120);
const body = render(settings.events);
const phases = ['before', 'spike', 'after'];

export { setup } from './lib/send.js';

// A quarter, a half, a quarter of the time.
function phase(name, from, share, rate) {
  return {
    executor: 'constant-arrival-rate', exec: name, rate: Math.round(rate), timeUnit: '1s', preAllocatedVUs: settings.vus,
    startTime: duration(from * settings.duration), duration: duration(share * settings.duration), gracefulStop: '60s',
  };
}

export const options = shared({
  phases,
  teardownTimeout: `${patience + 30}s`,
  scenarios: {
    before: phase('before', 0, 0.25, settings.rate),
    spike: phase('spike', 0.25, 0.5, settings.rate * factor),
    after: phase('after', 0.75, 0.25, settings.rate),
  },
  thresholds: {
    ...HONEST,
    sluice_unknown: ['count==0'],
    'sluice_acked{phase:before}': ['count>0'],
    'sluice_acked{phase:spike}': ['count>0'],
    'sluice_acked{phase:after}': ['count>0'],
    'sluice_refused{phase:before}': ['count==0'],
    'sluice_ack_ms{phase:after}': [`p(99)<${settings.p99}`],
    ...where(settings, { sluice_drained: ['count==1'] }),
  },
});

function sendIn(name, run) {
  send(settings, { key: settings.keys[0], body, id: newId(run), tags: { phase: name } });
}

export function before({ run }) {
  sendIn('before', run);
}

export function spike({ run }) {
  sendIn('spike', run);
}

export function after({ run }) {
  sendIn('after', run);
}

export function teardown() {
  untilDrained(settings, patience * 1000);
}

export const handleSummary = summary('spike', settings, { phases, figures: { sluice_drain_s: 'drained after, s' } });
