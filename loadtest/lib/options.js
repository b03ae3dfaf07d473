// k6's options, as all scripts have them.

// Counters that are told for each phase; what a phase's row of the summary is made of.
const COUNTED = ['sluice_sent', 'sluice_acked', 'sluice_4xx', 'sluice_over', 'sluice_refused', 'sluice_unknown', 'sluice_unanswered', 'sluice_wrong', 'sluice_events_acked'];

// True always: k6 keeps the figures of a tag only where a threshold names it.
export const ALWAYS = { counter: 'count>=0', trend: 'max>=0' };

// No answer may be outside of the contract, missing, or a 4xx, a quota's 429 included; and something must have been sent. The last one
// matters: k6 passes any threshold on a metric that has no sample.
export const HONEST = {
  sluice_wrong: ['count==0'],
  sluice_unanswered: ['count==0'],
  sluice_4xx: ['count==0'],
  sluice_over: ['count==0'],
  sluice_acked: ['count>0'],
};

// A 503 is honest too, but here there must be none.
export const NO_REFUSALS = { sluice_refused: ['count==0'], sluice_unknown: ['count==0'] };

// A server with a certificate of its own making.
const insecure = (__ENV.TLS_INSECURE || '') !== '';

export function options({ scenarios, thresholds, phases = [], teardownTimeout = '60s' }) {
  const all = { ...thresholds };
  for (const phase of phases) {
    for (const name of COUNTED) add(all, `${name}{phase:${phase}}`, ALWAYS.counter);
    add(all, `sluice_ack_ms{phase:${phase}}`, ALWAYS.trend);
  }
  return {
    scenarios,
    thresholds: all,
    teardownTimeout,
    insecureSkipTLSVerify: insecure,
    summaryTrendStats: ['p(50)', 'p(95)', 'p(99)', 'max'],
    // Few series a metric: nothing is asked for by method or URL.
    systemTags: ['scenario', 'group', 'check'],
  };
}

function add(all, name, threshold) {
  all[name] = [...(all[name] || []), threshold];
}
