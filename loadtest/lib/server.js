// What Sluice says of itself on its admin listeners (ADMIN_URL, several by comma): memory and backlog.

import http from 'k6/http';
import { sleep } from 'k6';
import { Counter, Gauge, Trend } from 'k6/metrics';

// A threshold on a gauge sees its last value only; these two are about the highest.
const memory = new Trend('sluice_memory_mib');
const backlog = new Trend('sluice_backlog_mib');
const growth = new Gauge('sluice_memory_growth_mib');
const drained = new Counter('sluice_drained');
const drain = new Gauge('sluice_drain_s');

const MIB = 1024 * 1024;
const LOOK_S = 0.5;

// The sums of these metrics over all listeners; null where one did not answer.
function look(settings, names) {
  const sums = names.map(() => 0);
  for (const url of settings.adminUrls) {
    const response = http.get(`${url}/metrics`, { timeout: '10s' });
    if (response.status !== 200) return null;
    for (const line of response.body.split('\n')) {
      const at = names.findIndex((name) => line.startsWith(`${name} `) || line.startsWith(`${name}{`));
      if (at >= 0) sums[at] += Number(line.slice(line.lastIndexOf(' ') + 1));
    }
  }
  return sums;
}

function mean(list) {
  return list.reduce((sum, one) => sum + one, 0) / list.length;
}

// Looks until `ms` are over; then tells how much more memory the last third held than the one before.
export function watch(settings, ms) {
  const seen = [];
  for (const until = Date.now() + ms; Date.now() < until; sleep(LOOK_S)) {
    const found = look(settings, ['process_resident_memory_bytes', 'sluice_log_backlog_bytes']);
    if (found) {
      seen.push(found[0] / MIB);
      memory.add(found[0] / MIB);
      backlog.add(found[1] / MIB);
    }
  }
  const third = Math.floor(seen.length / 3);
  if (third > 0) growth.add(mean(seen.slice(2 * third)) - mean(seen.slice(third, 2 * third)));
}

// Waits until nothing is in the log that is not in ClickHouse.
export function untilDrained(settings, ms) {
  if (settings.adminUrls.length === 0) return;
  const start = Date.now();
  while (Date.now() < start + ms) {
    const found = look(settings, ['sluice_log_backlog_bytes']);
    if (found && found[0] === 0) {
      drained.add(1);
      drain.add((Date.now() - start) / 1000);
      return;
    }
    sleep(LOOK_S);
  }
}

// Where there is an admin listener to ask: thresholds that need one.
export function where(settings, thresholds) {
  return settings.adminUrls.length > 0 ? thresholds : {};
}
