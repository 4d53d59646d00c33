/* The set, as gallery.js holds it column by column. */

const KNOWN_SCORES = ["teacher_score", "verifier_score", "agreement", "teacher_iou", "verifier_iou", "loss"];

function readSet(raw) {
  const count = raw.files.length;
  const [height, width] = raw.size;
  const starts = new Uint32Array(count + 1);
  for (let i = 0; i < count; i++) starts[i + 1] = starts[i] + raw.counts[i];
  const columns = new Map(raw.records);
  const duplicateOf = new Map(raw.duplicates);
  const steps = new Set(raw.steps);
  const pad = (number) => String(number).padStart(6, "0");
  const shard = (i) => Math.floor(raw.files[i] / 1e6);
  const path = (i) => `${pad(shard(i))}/${pad(raw.files[i] % 1e6)}.png`;
  return {
    count, height, width, columns, duplicateOf, steps,
    classes: raw.classes,
    facts: raw.facts,
    scores: scoreFields(columns),
    whole: new Set([...columns].filter(([, values]) => values.every((v) => v === null || Number.isInteger(v))).map(([name]) => name)),
    labels: raw.labels,
    starts,
    path: (i) => `shards/${path(i)}`,
    image: (i) => `${raw.root}/shards/${path(i)}`,
    strip: (i) => `${raw.root}/pictures/steps/${path(i)}`,
    home: raw.root,
    course: (i) => raw.courses[shard(i)] || null,
    boxes: (i) => {
      const found = [];
      for (let k = starts[i]; k < starts[i + 1]; k++) found.push({ label: raw.labels[k], box: raw.boxes.slice(4 * k, 4 * k + 4) });
      return found;
    },
  };
}

/* Columns of numbers that differ; the known scores first. */
function scoreFields(columns) {
  const fields = [];
  for (const [name, values] of columns) {
    const numbers = values.filter((v) => typeof v === "number");
    const varied = numbers.some((v) => v !== numbers[0]);
    if (numbers.length && (varied || KNOWN_SCORES.includes(name))) fields.push(name);
  }
  const rank = (name) => (KNOWN_SCORES.includes(name) ? KNOWN_SCORES.indexOf(name) : KNOWN_SCORES.length);
  return fields.sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
}

function title(field) {
  return field.replace(/_/g, " ").replace(/\biou\b/g, "IoU");
}

function mean(values) {
  let sum = 0, count = 0;
  for (const v of values) if (typeof v === "number") { sum += v; count += 1; }
  return count ? sum / count : null;
}

/* [low, high] of the axis of a score: 0 to 1 where all values are. */
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (typeof v === "number") { low = Math.min(low, v); high = Math.max(high, v); }
  if (low >= 0 && high <= 1) return [0, 1];
  return low < high ? [low, high] : [low, low + 1];
}

const thousands = new Intl.NumberFormat("en");

function written(value) {
  if (typeof value === "number") return Number.isInteger(value) ? thousands.format(value) : String(Number(value.toPrecision(5)));
  if (value === null || value === undefined) return "\u2013";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "string" ? value : JSON.stringify(value);
}

/* A score in a row of others: as many digits as they have. */
function brief(set, field, value) {
  if (typeof value !== "number" || set.whole.has(field)) return written(value);
  return value.toFixed(Math.abs(value) < 100 ? 3 : 1);
}

/* The colour of a class: hues that neighbours do not share. */
function hue(label) {
  return Math.round((label * 137.508 + 205) % 360);
}
