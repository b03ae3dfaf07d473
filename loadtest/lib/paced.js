// A client that sends at a steady pace through two phases, and compares them: p99 of the second over p99 of the first.
//
// A request's time counts from when it was due, not from when it went out: a client that waits for an answer and
// so sends less would otherwise hide just the slowness that is looked for.

import { sleep } from 'k6';
import { Trend } from 'k6/metrics';
import { send, newId } from './send.js';

const ratio = new Trend('sluice_p99_ratio');

function p99(sorted) {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.99))];
}

// Sends until all phases are over. `phases`: [{name, ms}], of which the one named `between` is not compared.
export function paced(settings, { run, key, body, rate, phases, floor }) {
  const times = {};
  const start = Date.now();
  let due = start + (Math.random() * 1000) / rate;
  let from = start;
  for (const { name, ms } of phases) {
    times[name] = [];
    for (; due < from + ms; due += 1000 / rate) {
      if (due > Date.now()) sleep((due - Date.now()) / 1000);
      const late = Math.max(0, Date.now() - due);
      const before = Date.now();
      send(settings, { key, body, id: newId(run), tags: { phase: name }, late });
      times[name].push(late + Date.now() - before);
    }
    from += ms;
  }
  compare(phases.filter(({ name }) => name !== 'between').map(({ name }) => times[name].sort((a, b) => a - b)), floor);
}

// Below `floor` ms a p99 is the machine's noise, and counts as that.
function compare([before, after], floor) {
  if (before.length > 0 && after.length > 0) ratio.add(p99(after) / Math.max(floor, p99(before)));
}
