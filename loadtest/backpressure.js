// ClickHouse is stopped while this runs, and started again, by whoever runs it (run.sh does).
//
// Each VU is a client as the documentation wants it: it sends a request, waits as long as Retry-After says when it
// is refused, and sends the same one again. So each must see three times in this order and no other: its requests
// are taken, for as long as the log has room; they are refused, all of them; they are taken again. The script ends
// AFTER_S later, or at DURATION.
//
// A body is 51 KB. What is refused early is read and dropped, up to 64 MiB over 5 s, so that the client sees the answer
// of a larger body too (PAYLOAD=50000: 500 KB).

import { sleep } from 'k6';
import { Counter, Trend } from 'k6/metrics';
import { render } from './lib/bodies.js';
import { duration, settings as read } from './lib/settings.js';
import { HONEST, options as shared } from './lib/options.js';
import { newId, send } from './lib/send.js';
import { untilDrained, where } from './lib/server.js';
import { summary } from './lib/summary.js';

const settings = read({ duration: '10m', rate: 500, vus: 16, events: 10 });
const payload = settings.number('PAYLOAD', 5000);
const afterwards = settings.number('AFTER_S', 10);
// The backlog is stored beside what is new: at the full rate a slow ClickHouse would, rightly, let the log fill again.
const rateAgain = settings.number('RATE_AGAIN', settings.rate / 5);
const patience = settings.number('DRAIN_S', 300);
const body = render(settings.events, payload);
const phases = ['taking', 'refusing', 'again'];

const periods = new Trend('sluice_refusal_periods');
const recovered = new Counter('sluice_recovered');

export { setup } from './lib/send.js';

export const options = shared({
  phases,
  teardownTimeout: `${patience + 30}s`,
  scenarios: {
    clients: {
      executor: 'per-vu-iterations', vus: settings.vus, iterations: 1, maxDuration: duration(settings.duration + 60000),
    },
  },
  thresholds: {
    ...HONEST,
    sluice_unknown: ['count==0'],
    'sluice_acked{phase:taking}': ['count>0'],
    'sluice_refused{phase:taking}': [`count==${settings.vus}`],
    'sluice_refused{phase:again}': ['count==0'],
    'sluice_acked{phase:again}': ['count>0'],
    sluice_refusal_periods: ['max<=1'],
    sluice_recovered: [`count==${settings.vus}`],
    ...where(settings, { sluice_drained: ['count==1'] }),
  },
});

export default function client({ run }) {
  const until = Date.now() + settings.duration;
  let phase = 'taking';
  let refusals = 0;
  let end = until;
  let id = newId(run);
  while (Date.now() < end) {
    const before = Date.now();
    const { ended, retryAfter } = send(settings, { key: settings.keys[0], body, id, tags: { phase } });
    if (ended === 'refused') {
      if (phase !== 'refusing') refusals += 1;
      phase = 'refusing';
      sleep(retryAfter);
      continue;
    }
    id = newId(run);
    if (ended === 'acked' && phase === 'refusing') {
      phase = 'again';
      recovered.add(1);
      end = Math.min(until, Date.now() + afterwards * 1000);
    }
    const pause = (1000 * settings.vus) / (phase === 'again' ? rateAgain : settings.rate);
    sleep(Math.max(0, before + pause - Date.now()) / 1000);
  }
  periods.add(refusals);
}

export function teardown() {
  untilDrained(settings, patience * 1000);
}

export const handleSummary = summary('backpressure', settings, {
  phases,
  figures: { sluice_recovered: 'clients whose requests were taken again', sluice_drain_s: 'drained after, s' },
});
