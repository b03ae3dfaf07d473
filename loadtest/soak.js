// A steady rate for long: nothing refused, acknowledgements stay quick, memory and backlog stay flat.

import { render } from './lib/bodies.js';
import { duration, settings as read } from './lib/settings.js';
import { HONEST, NO_REFUSALS, options as shared } from './lib/options.js';
import { newId, send } from './lib/send.js';
import { untilDrained, watch, where } from './lib/server.js';
import { summary } from './lib/summary.js';

const settings = read({ duration: '30m', rate: 100, vus: 50, events: 100, p99: 250 });
// How much more memory the last third of the time may hold than the middle one.
const growth = settings.number('GROWTH_MIB', 64);
const backlog = settings.number('BACKLOG_MIB', 256);
const patience = settings.number('DRAIN_S', 120);
const body = render(settings.events);

export { setup } from './lib/send.js';

const load = {
  executor: 'constant-arrival-rate', exec: 'load', rate: settings.rate, timeUnit: '1s',
  duration: duration(settings.duration), preAllocatedVUs: settings.vus,
};
const watcher = {
  executor: 'per-vu-iterations', exec: 'watcher', vus: 1, iterations: 1, maxDuration: duration(settings.duration + 30000),
};

export const options = shared({
  teardownTimeout: `${patience + 30}s`,
  scenarios: { load, ...where(settings, { watcher }) },
  thresholds: {
    ...HONEST,
    ...NO_REFUSALS,
    sluice_ack_ms: [`p(99)<${settings.p99}`],
    // Requests that k6 could not send in time would be missing from the figures.
    dropped_iterations: ['count==0'],
    ...where(settings, {
      sluice_memory_growth_mib: [`value<${growth}`],
      sluice_backlog_mib: [`max<${backlog}`],
      sluice_drained: ['count==1'],
    }),
  },
});

function sendOne({ run }) {
  send(settings, { key: settings.keys[0], body, id: newId(run) });
}

function watchAll() {
  watch(settings, settings.duration);
}

export { sendOne as load, watchAll as watcher };

export function teardown() {
  untilDrained(settings, patience * 1000);
}

export const handleSummary = summary('soak', settings, {
  figures: {
    sluice_memory_mib: 'memory at most, MiB',
    sluice_memory_growth_mib: 'more memory in the last third than in the middle one, MiB',
    sluice_backlog_mib: 'backlog at most, MiB',
    sluice_drain_s: 'drained after, s',
  },
});
