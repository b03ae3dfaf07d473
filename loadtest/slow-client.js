// A healthy client, before and while a crowd of slow ones holds connections open.
//
// k6 sends each body at once and so cannot be slow itself: the crowd is `sluice-bench drip`, which whoever runs
// this starts so that it is there after a third of DURATION (run.sh does). The second third, in which the crowd
// assembles, is not compared.

import { render } from './lib/bodies.js';
import { duration, settings as read } from './lib/settings.js';
import { HONEST, NO_REFUSALS, options as shared } from './lib/options.js';
import { paced } from './lib/paced.js';
import { summary } from './lib/summary.js';

const settings = read({ duration: '60s', rate: 25, vus: 2, events: 20, p99: 500 });
const most = settings.number('RATIO', 3);
const floor = settings.number('FLOOR_MS', 20);
const third = settings.duration / 3;
const body = render(settings.events);
const phases = ['alone', 'between', 'crowded'];

export { setup } from './lib/send.js';

export const options = shared({
  phases,
  scenarios: {
    healthy: { executor: 'per-vu-iterations', vus: settings.vus, iterations: 1, maxDuration: duration(settings.duration + 60000) },
  },
  thresholds: {
    ...HONEST,
    ...NO_REFUSALS,
    'sluice_acked{phase:alone}': ['count>0'],
    'sluice_acked{phase:crowded}': ['count>0'],
    'sluice_ack_ms{phase:crowded}': [`p(99)<${settings.p99}`],
    sluice_p99_ratio: [`max<=${most}`],
  },
});

export default function healthy({ run }) {
  const thirds = phases.map((name) => ({ name, ms: third }));
  paced(settings, { run, key: settings.keys[0], body, rate: settings.rate, phases: thirds, floor });
}

export const handleSummary = summary('slow-client', settings, {
  phases,
  figures: { sluice_p99_ratio: 'p99 of the worst client, crowded over alone' },
});
