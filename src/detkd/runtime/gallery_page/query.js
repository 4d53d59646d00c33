/* What is shown: a state, its form in the address, and the images that it selects. */

const STATUS = [
  ["all", "all images", () => true],
  ["accepted", "accepted", (set, i) => set.columns.get("accepted")[i] === true],
  ["rejected", "rejected", (set, i) => set.columns.get("accepted")[i] === false],
  ["duplicate", "near-duplicates", (set, i) => set.duplicateOf.has(i)],
  ["unique", "without near-duplicates", (set, i) => !set.duplicateOf.has(i)],
  ["empty", "without an object", (set, i) => set.starts[i] === set.starts[i + 1]],
  ["steps", "with intermediate steps", (set, i) => set.steps.has(i)],
];

/* The entries of STATUS that this set can tell apart, each with its number of images. */
function statuses(set) {
  const known = STATUS.filter(([key]) => set.columns.has("accepted") || (key !== "accepted" && key !== "rejected"));
  const counted = known.map(([key, text, holds]) => {
    let count = 0;
    for (let i = 0; i < set.count; i++) if (holds(set, i)) count += 1;
    return { key, text, holds, count };
  });
  return counted.filter(({ key, count }) => key === "all" || (count > 0 && (count < set.count || key === "accepted")));
}

function firstState(set) {
  return { score: set.scores[0] || null, order: set.scores.length ? "worst" : "set", label: null, status: "all", ranges: new Map(), boxes: true, size: "m", image: null };
}

function toHash(state, set) {
  const first = firstState(set);
  const out = new URLSearchParams();
  if (state.score !== first.score) out.set("score", state.score);
  if (state.order !== first.order) out.set("order", state.order);
  if (state.label !== null) out.set("class", set.classes[state.label]);
  if (state.status !== "all") out.set("show", state.status);
  for (const [field, [low, high]] of state.ranges) out.set(`in.${field}`, `${low === null ? "" : low}..${high === null ? "" : high}`);
  if (!state.boxes) out.set("boxes", "off");
  if (state.size !== "m") out.set("size", state.size);
  if (state.image !== null) out.set("image", state.image);
  const text = out.toString();
  return text ? `#${text}` : "";
}

/* The state that an address asks for; what it asks in vain is passed over. */
function fromHash(hash, set, known) {
  const state = firstState(set);
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  if (set.scores.includes(given.get("score"))) state.score = given.get("score");
  if (["worst", "best", "set"].includes(given.get("order")) && set.scores.length) state.order = given.get("order");
  const label = set.classes.indexOf(given.get("class"));
  if (given.has("class") && label >= 0) state.label = label;
  if (known.some(({ key }) => key === given.get("show"))) state.status = given.get("show");
  for (const field of set.scores) {
    const ends = /^(-?[\d.e+-]*)\.\.(-?[\d.e+-]*)$/.exec(given.get(`in.${field}`) || "");
    if (ends) setRange(state, field, numberOrNull(ends[1]), numberOrNull(ends[2]));
  }
  state.boxes = given.get("boxes") !== "off";
  if (["s", "m", "l"].includes(given.get("size"))) state.size = given.get("size");
  const image = Number(given.get("image"));
  if (given.has("image") && given.get("image") !== "" && Number.isInteger(image) && image >= 0 && image < set.count) state.image = image;
  return state;
}

function numberOrNull(text) {
  return text.trim() === "" || !Number.isFinite(Number(text)) ? null : Number(text);
}

function setRange(state, field, low, high) {
  if (low === null && high === null) state.ranges.delete(field);
  else state.ranges.set(field, [low, high]);
}

/* Indices of the images that a state selects, in its order. except: a score whose own range does not count. */
function select(set, state, except) {
  const holds = STATUS.find(([key]) => key === state.status)[2];
  const ranges = [...state.ranges].filter(([field]) => field !== except).map(([field, ends]) => [set.columns.get(field), ends]);
  const found = [];
  for (let i = 0; i < set.count; i++) {
    if (!holds(set, i)) continue;
    if (state.label !== null && !hasLabel(set, i, state.label)) continue;
    if (ranges.every(([values, [low, high]]) => within(values[i], low, high))) found.push(i);
  }
  return except === undefined ? sorted(set, state, found) : found;
}

function within(value, low, high) {
  return typeof value === "number" && (low === null || value >= low) && (high === null || value <= high);
}

function hasLabel(set, i, label) {
  for (let k = set.starts[i]; k < set.starts[i + 1]; k++) if (set.labels[k] === label) return true;
  return false;
}

/* Images without the score come last, whichever way round. */
function sorted(set, state, found) {
  if (state.order === "set" || state.score === null) return found;
  const values = set.columns.get(state.score);
  // of all scores the loss alone is bad when it is high
  const sign = (state.order === "worst") === (state.score === "loss") ? -1 : 1;
  const key = (i) => (typeof values[i] === "number" ? sign * values[i] : Infinity);
  return found.sort((a, b) => { const x = key(a), y = key(b); return x < y ? -1 : x > y ? 1 : a - b; });
}
