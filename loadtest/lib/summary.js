// What a run says at its end: a table to read, and the same as JSON.

import { ALWAYS } from './options.js';

const COLUMNS = ['sent', '2xx', '4xx', '429', '503 refused', '503 unknown', 'no answer', 'wrong', 'ack p50', 'p95', 'p99 ms', 'events/s'];
const METRICS = { sent: 'sent', '2xx': 'acked', '4xx': '4xx', 429: 'over', '503 refused': 'refused', '503 unknown': 'unknown', 'no answer': 'unanswered', wrong: 'wrong' };

function values(data, name, tag) {
  const metric = data.metrics[tag ? `${name}{phase:${tag}}` : name];
  return metric ? metric.values : {};
}

function row(data, tag, seconds) {
  const counts = {};
  for (const [column, name] of Object.entries(METRICS)) counts[column] = values(data, `sluice_${name}`, tag).count || 0;
  const ack = values(data, 'sluice_ack_ms', tag);
  const taken = counts['2xx'] > 0;
  return {
    ...counts,
    'ack p50': taken ? ack['p(50)'] : null,
    p95: taken ? ack['p(95)'] : null,
    'p99 ms': taken ? ack['p(99)'] : null,
    'events/s': seconds > 0 ? (values(data, 'sluice_events_acked', tag).count || 0) / seconds : null,
  };
}

function thresholds(data) {
  const found = [];
  for (const [metric, { thresholds: own = {}, values: is }] of Object.entries(data.metrics)) {
    for (const [threshold, { ok }] of Object.entries(own)) {
      if (!Object.values(ALWAYS).includes(threshold)) found.push({ metric, threshold, ok, value: measured(threshold, is) });
    }
  }
  // What failed first.
  return found.sort((a, b) => Number(a.ok) - Number(b.ok) || (a.metric < b.metric ? -1 : 1));
}

// The figure that a threshold is about: `p(99)` of `p(99)<250`.
function measured(threshold, is) {
  const what = threshold.match(/^[a-z]+(\([\d.]+\))?/)[0];
  return is[what] === undefined ? null : is[what];
}

function checks(group) {
  return [...group.checks, ...group.groups.flatMap(checks)];
}

function text(value) {
  if (value === null || value === undefined) return '-';
  if (Number.isInteger(value)) return String(value);
  if (value >= 100) return String(Math.round(value));
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function table(rows) {
  const widths = rows[0].map((_, at) => Math.max(...rows.map((cells) => cells[at].length)));
  const line = (cells) => cells.map((cell, at) => (at === 0 ? cell.padEnd(widths[at]) : cell.padStart(widths[at]))).join('  ');
  return rows.map((cells) => `  ${line(cells)}`.trimEnd()).join('\n');
}

function picture(report) {
  const rows = [[`${report.seconds.toFixed(1)} s`, ...COLUMNS]];
  for (const [name, cells] of Object.entries(report.rows)) rows.push([name, ...COLUMNS.map((column) => text(cells[column]))]);
  const parts = [`\nSluice load test: ${report.script}, against ${report.base_url}\n`, table(rows), ''];
  for (const [name, value] of Object.entries(report.figures)) parts.push(`  ${name}: ${text(value)}`);
  if (report.not_sent > 0) parts.push(`  not sent, since every VU waited for an answer: ${report.not_sent}`);
  for (const one of report.checks) parts.push(`  ${one.fails === 0 ? 'ok  ' : 'FAIL'}  ${one.name}${one.fails > 0 ? ` (${one.fails} of ${one.passes + one.fails})` : ''}`);
  for (const one of report.thresholds) parts.push(`  ${one.ok ? 'ok  ' : 'FAIL'}  ${one.metric} ${one.threshold}  (${text(one.value)})`);
  parts.push(report.passed ? '\n  all thresholds passed\n' : '\n  THRESHOLDS FAILED\n');
  return parts.join('\n');
}

// `handleSummary` of a script. `figures`: names of gauges to show, each with what it is called.
export function summary(script, settings, { phases = [], figures = {} } = {}) {
  return (data) => {
    const clock = values(data, 'sluice_clock_ms');
    const seconds = clock.max > clock.min ? (clock.max - clock.min) / 1000 : 0;
    // A phase's events/s are of the whole time, so that the rows add up to the last.
    const rows = {};
    for (const phase of phases) rows[phase] = row(data, phase, seconds);
    rows.all = row(data, undefined, seconds);
    const shown = {};
    for (const [metric, name] of Object.entries(figures)) {
      const is = values(data, metric);
      if (data.metrics[metric]) shown[name] = is.max === undefined ? is.count : is.max;
    }
    const judged = thresholds(data);
    const report = {
      script,
      base_url: settings.baseUrl,
      seconds,
      rows,
      figures: shown,
      not_sent: values(data, 'dropped_iterations').count || 0,
      checks: checks(data.root_group).map(({ name, passes, fails }) => ({ name, passes, fails })),
      thresholds: judged,
      passed: judged.every((one) => one.ok),
    };
    const out = { stdout: picture(report) };
    if (settings.summary) out[settings.summary] = `${JSON.stringify(report, null, 2)}\n`;
    return out;
  };
}
