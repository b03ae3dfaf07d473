// The first key of KEYS floods; the others send a little. First they are alone, then the flood comes:
// none of them may be refused, and their acknowledgements may not become much slower.

import { sleep } from 'k6';
import exec from 'k6/execution';
import { render } from './lib/bodies.js';
import { duration, settings as read } from './lib/settings.js';
import { HONEST, options as shared } from './lib/options.js';
import { newId, send } from './lib/send.js';
import { paced } from './lib/paced.js';
import { summary } from './lib/summary.js';

const settings = read({ keys: 2, duration: '60s', rate: 10, vus: 8, events: 20, p99: 1000 });
const noisyEvents = settings.number('NOISY_EVENTS', 1000);
const most = settings.number('RATIO', 12);
const floor = settings.number('FLOOR_MS', 20);
const [noisyKey, ...quietKeys] = settings.keys;
const half = settings.duration / 2;
const quietBody = render(settings.events);
const noisyBody = render(noisyEvents);
const phases = ['alone', 'together', 'noisy'];

export { setup } from './lib/send.js';

export const options = shared({
  phases,
  scenarios: {
    // One VU a tenant, all the time: it compares its own two halves.
    quiet: {
      executor: 'per-vu-iterations', exec: 'quiet', vus: quietKeys.length, iterations: 1, maxDuration: duration(settings.duration + 60000),
    },
    noisy: { executor: 'constant-vus', exec: 'noisy', vus: settings.vus, startTime: duration(half), duration: duration(half), gracefulStop: '60s' },
  },
  thresholds: {
    ...HONEST,
    sluice_over: [],
    'sluice_over{phase:together}': ['count==0'],
    'sluice_acked{phase:alone}': ['count>0'],
    'sluice_acked{phase:together}': ['count>0'],
    'sluice_acked{phase:noisy}': ['count>0'],
    'sluice_refused{phase:together}': ['count==0'],
    'sluice_unknown{phase:together}': ['count==0'],
    'sluice_ack_ms{phase:together}': [`p(99)<${settings.p99}`],
    sluice_p99_ratio: [`max<=${most}`],
  },
});

export function quiet({ run }) {
  const key = quietKeys[exec.scenario.iterationInTest];
  const both = [{ name: 'alone', ms: half }, { name: 'together', ms: half }];
  paced(settings, { run, key, body: quietBody, rate: settings.rate, phases: both, floor });
}

// Sends as much as is taken, and waits only when it is told to.
export function noisy({ run }) {
  const { ended, retryAfter } = send(settings, { key: noisyKey, body: noisyBody, id: newId(run), tags: { phase: 'noisy' } });
  if (ended === 'refused' || ended === 'over') sleep(retryAfter);
}

export const handleSummary = summary('noisy-neighbour', settings, {
  phases,
  figures: { sluice_p99_ratio: 'p99 of the worst quiet tenant, together over alone' },
});
