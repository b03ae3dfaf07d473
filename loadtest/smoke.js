// Does it work at all? Every form of a body and every common mistake once, then a little load.

import { check } from 'k6';
import { render, fill } from './lib/bodies.js';
import { duration, settings as read } from './lib/settings.js';
import { HONEST, NO_REFUSALS, options as shared } from './lib/options.js';
import { count, newId, post, send } from './lib/send.js';
import { summary } from './lib/summary.js';

const settings = read({ duration: '10s', rate: 20, vus: 5, events: 50, p99: 500 });
const body = render(settings.events);
const key = settings.keys[0];

export { setup } from './lib/send.js';

export const options = shared({
  scenarios: {
    forms: { executor: 'per-vu-iterations', exec: 'forms', vus: 1, iterations: 1 },
    load: {
      executor: 'constant-arrival-rate', exec: 'load', rate: settings.rate, timeUnit: '1s',
      duration: duration(settings.duration), preAllocatedVUs: settings.vus,
    },
  },
  thresholds: {
    ...HONEST,
    ...NO_REFUSALS,
    checks: ['rate==1'],
    sluice_ack_ms: [`p(99)<${settings.p99}`],
  },
});

// A good body in each of its forms.
function good(run) {
  const forms = [
    ['NDJSON', 'application/x-ndjson', (text) => text],
    ['JSON Lines', 'application/jsonl', (text) => text],
    ['an array', 'application/json', (text) => `[${text.trim().split('\n').join(',')}]`],
  ];
  for (const [name, type, form] of forms) {
    const id = newId(run);
    const response = post(settings, { key, text: form(fill(body, id)), type });
    const { ended } = count(settings, { id, events: body.events, response });
    check(ended, { [`${name} is taken`]: (is) => is === 'acked' });
  }
  for (const compression of ['gzip', 'zstd', 'deflate']) {
    const id = newId(run);
    const response = post(settings, { key, text: fill(body, id), params: { compression } });
    const { ended } = count(settings, { id, events: body.events, response });
    check(ended, { [`${compression} is taken`]: (is) => is === 'acked' });
  }
}

// The same request again is acknowledged again; that it is stored once is for whoever looks into ClickHouse.
function repeated(run) {
  const one = render(1);
  const id = newId(run);
  const text = fill(one, id).trim();
  for (const name of ['an object is taken', 'and taken again']) {
    const response = post(settings, { key, text, type: 'application/json' });
    const { ended } = count(settings, { id, events: 1, response });
    check(ended, { [name]: (is) => is === 'acked' });
  }
}

// Mistakes are told from each other. They are no part of the counts.
function mistakes() {
  const event = { text: '{"service":"smoke"}', type: 'application/json', key };
  const cases = [
    ['no event of it is good', {}, 422, null],
    ['half an array', { text: '[{"event_id":' }, 400, 'malformed_json'],
    ['an unknown key', { key: 'slc_nobody_00' }, 401, 'unknown_api_key'],
    ['an unknown dataset', { path: '/v1/events/no_such_dataset' }, 404, 'unknown_dataset'],
    ['another media type', { type: 'text/csv' }, 415, 'unsupported_media_type'],
  ];
  for (const [name, mistake, status, code] of cases) {
    const response = post(settings, { ...event, ...mistake });
    check(response, {
      [`${name}: ${status}${code ? ` ${code}` : ''}`]: (is) => is.status === status && (code === null || is.json('code') === code),
    });
  }
}

export function forms({ run }) {
  good(run);
  repeated(run);
  mistakes();
}

export function load({ run }) {
  send(settings, { key, body, id: newId(run) });
}

export const handleSummary = summary('smoke', settings);
