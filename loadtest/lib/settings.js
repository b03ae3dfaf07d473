// What the environment says. Read once, in init; a wrong value ends k6 before anything is sent.

function number(name, fallback) {
  const text = __ENV[name];
  if (text === undefined || text === '') return fallback;
  const value = Number(text);
  if (!Number.isFinite(value) || value < 0) throw new Error(`${name}=${text}: a number of at least 0 is needed`);
  return value;
}

// "500ms", "30s", "5m", "1h30m" in milliseconds.
export function milliseconds(text) {
  if (!/^(\d+(\.\d+)?(ms|s|m|h))+$/.test(text)) throw new Error(`"${text}" is no duration: write 500ms, 30s, 5m or 1h30m`);
  const units = { ms: 1, s: 1000, m: 60000, h: 3600000 };
  return [...text.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h)/g)].reduce((sum, [, value, unit]) => sum + Number(value) * units[unit], 0);
}

function list(name) {
  return (__ENV[name] || '').split(',').map((one) => one.trim()).filter(Boolean);
}

// The settings of one script; `defaults` are what it runs with where the environment says nothing.
export function settings(defaults) {
  const keys = list('KEYS').length > 0 ? list('KEYS') : list('KEY');
  if (keys.length < (defaults.keys || 1)) {
    throw new Error(defaults.keys > 1
      ? `KEYS=KEY1,KEY2,…: ${defaults.keys} tenants' API keys or more are needed`
      : 'KEY=…: a tenant\'s API key is needed');
  }
  const read = {
    baseUrl: (__ENV.BASE_URL || 'http://127.0.0.1:4318').replace(/\/+$/, ''),
    adminUrls: list('ADMIN_URL').map((url) => url.replace(/\/+$/, '')),
    dataset: __ENV.DATASET || 'events',
    keys,
    duration: milliseconds(__ENV.DURATION || defaults.duration),
    rate: number('RATE', defaults.rate),
    vus: number('VUS', defaults.vus),
    events: number('EVENTS', defaults.events),
    p99: number('P99_MS', defaults.p99),
    summary: __ENV.SUMMARY || '',
    record: (__ENV.RECORD || '') !== '',
  };
  for (const name of ['duration', 'rate', 'vus', 'events']) {
    if (read[name] !== undefined && read[name] <= 0) throw new Error(`${name.toUpperCase()} must be above 0`);
  }
  return { ...read, number };
}

// For k6's own options, which take whole seconds or milliseconds as text.
export function duration(ms) {
  return `${Math.round(ms)}ms`;
}
