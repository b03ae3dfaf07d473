// Sends requests, and counts how each ended: exactly one of acked, 4xx, over, refused, unknown, unanswered, wrong.

import http from 'k6/http';
import exec from 'k6/execution';
import encoding from 'k6/encoding';
import { randomBytes } from 'k6/crypto';
import { Counter, Gauge, Trend } from 'k6/metrics';
import { fill } from './bodies.js';

const counters = {
  sent: new Counter('sluice_sent'),
  acked: new Counter('sluice_acked'),
  '4xx': new Counter('sluice_4xx'),
  over: new Counter('sluice_over'),
  refused: new Counter('sluice_refused'),
  unknown: new Counter('sluice_unknown'),
  unanswered: new Counter('sluice_unanswered'),
  wrong: new Counter('sluice_wrong'),
};
const eventsAcked = new Counter('sluice_events_acked');
const ack = new Trend('sluice_ack_ms');
// Its least and its highest value tell how long was sent.
const clock = new Gauge('sluice_clock_ms');

// A request that gets no answer in this time counts as unanswered.
const TIMEOUT = '60s';
// What was wrong is printed this often by each VU.
const WORDS = 3;

let numbered = 0;
let said = 0;

// Before the first VU: a name for this run, so that the ids of no two runs are the same.
export function setup() {
  return { run: encoding.b64encode(randomBytes(6), 'rawurl') };
}

// An id that no other request has, of any VU or run.
export function newId(run) {
  numbered += 1;
  return `${run}-${exec.vu.idInTest}-${numbered}`;
}

function says(response, name) {
  return response.headers[name] || '';
}

function accepted(response) {
  try {
    const body = JSON.parse(response.body);
    return body.rejected === 0 ? body.accepted : -1;
  } catch (error) {
    return -1;
  }
}

// A 429 says which quota it is over, what is left, and when to come again.
function overQuota(response) {
  try {
    const problem = JSON.parse(response.body);
    const told = problem.code === 'quota_exceeded' && problem['violated-policies'].length > 0;
    return told && /^[1-9]\d*$/.test(says(response, 'Retry-After')) && says(response, 'Ratelimit') !== '' && says(response, 'Ratelimit-Policy') !== '';
  } catch (error) {
    return false;
  }
}

// The name of an answer's end. Whatever the contract does not know is wrong.
export function outcome(response, events) {
  const { status } = response;
  if (status === 0) return 'unanswered';
  if (status === 202) return accepted(response) === events ? 'acked' : 'wrong';
  if (status === 429) return overQuota(response) ? 'over' : 'wrong';
  if (status >= 400 && status < 500) return '4xx';
  const told = says(response, 'Sluice-Outcome');
  const honest = status === 503 && /^[1-9]\d*$/.test(says(response, 'Retry-After')) && (told === 'refused' || told === 'unknown');
  return honest ? told : 'wrong';
}

function tell(ended, response) {
  if (!['4xx', 'unanswered', 'wrong'].includes(ended) || said >= WORDS) return;
  said += 1;
  console.error(`${ended}: ${response.status} ${response.error || ''} ${String(response.body || '').slice(0, 300)}`);
}

// Counts one answer. `late`: how long after its time the request went out, in ms.
export function count(settings, { id, events, response, tags, late = 0 }) {
  const ended = outcome(response, events);
  counters.sent.add(1, tags);
  counters[ended].add(1, tags);
  clock.add(Date.now());
  if (ended === 'acked') {
    eventsAcked.add(events, tags);
    ack.add(late + response.timings.duration, tags);
  }
  if (settings.record) console.log(`${ended} ${id} ${events}`);
  tell(ended, response);
  return { ended, retryAfter: Number(says(response, 'Retry-After')) || 1, policy: says(response, 'Ratelimit-Policy') };
}

export function post(settings, { key, text, type = 'application/x-ndjson', path, params = {} }) {
  const headers = { 'Content-Type': type, Authorization: `Bearer ${key}` };
  return http.post(`${settings.baseUrl}${path || `/v1/events/${settings.dataset}`}`, text, { headers, timeout: TIMEOUT, ...params });
}

// Sends `body` as the request `id`.
export function send(settings, { key, body, id, tags = {}, late = 0 }) {
  const response = post(settings, { key, text: fill(body, id) });
  return count(settings, { id, events: body.events, response, tags, late });
}
