/* Wire the parts together: the address is the state, a change of it draws the page anew. */

function start() {
  const set = readSet(window.detkdGallery);
  const known = statuses(set);
  const folder = new URL(`${set.home}/`, document.baseURI).pathname.split("/").filter(Boolean).pop() || "";
  let name = folder;
  try { name = decodeURIComponent(folder); } catch { /* a folder name that is no percent-encoding is shown as it is */ }
  document.title = name ? `${name} \u00b7 gallery` : "Gallery";
  at("title").textContent = name || "Gallery";
  fillFacts(set);
  fillControls(set, known);

  let state = fromHash(location.hash, set, known);
  const change = (changes) => { Object.assign(state, changes); remember(); refresh(); };
  const grid = makeGrid(set, (image) => { state.image = image; remember(); detail.update(images, state); });
  const detail = makeDetail(set,
    (image) => { state.image = image; remember(); },
    (last) => { state.image = null; remember(); grid.focus(last); });
  const histogram = set.scores.length ? makeHistogram(set, (low, high) => { setRange(state, state.score, low, high); change({}); }) : null;
  let images = [];

  function remember() {
    history.replaceState(null, "", toHash(state, set) || location.pathname + location.search);
  }

  function refresh() {
    images = select(set, state);
    document.body.classList.toggle("no-boxes", !state.boxes);
    at("order").value = state.order;
    const judged = KNOWN_SCORES.includes(state.score);
    at("order").options[0].textContent = judged ? "worst first" : "lowest first";
    at("order").options[1].textContent = judged ? "best first" : "highest first";
    at("class").value = state.label === null ? "" : String(state.label);
    at("status").value = state.status;
    at("size").value = state.size;
    at("boxes").checked = state.boxes;
    if (histogram) {
      at("score").value = state.score;
      const here = mean(images.map((i) => set.columns.get(state.score)[i]));
      at("mean").textContent = here === null ? "" : `mean ${here.toFixed(3)}${images.length < set.count ? " of those shown" : ""}`;
      histogram(state);
    }
    at("count").textContent = images.length === set.count ? `${thousands.format(set.count)} images` : `${thousands.format(images.length)} of ${thousands.format(set.count)} images`;
    fillChips();
    grid.show(images, state);
  }

  function fillChips() {
    const chips = [];
    const chip = (text, clear) => {
      const made = make("button", { type: "button", class: "chip", title: "Take this filter away" }, make("span", { textContent: text }), " \u00d7");
      made.addEventListener("click", clear);
      chips.push(made);
    };
    if (state.label !== null) chip(set.classes[state.label], () => change({ label: null }));
    if (state.status !== "all") chip(known.find(({ key }) => key === state.status).text, () => change({ status: "all" }));
    for (const [field, [low, high]] of state.ranges) {
      const words = low === null ? `\u2264 ${high}` : high === null ? `\u2265 ${low}` : `${low} to ${high}`;
      chip(`${title(field)} ${words}`, () => { state.ranges.delete(field); change({}); });
    }
    at("chips").replaceChildren(...chips);
  }

  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("score").addEventListener("change", () => change({ score: at("score").value }));
  at("order").addEventListener("change", () => change({ order: at("order").value }));
  at("class").addEventListener("change", () => change({ label: at("class").value === "" ? null : Number(at("class").value) }));
  at("status").addEventListener("change", () => change({ status: at("status").value }));
  at("size").addEventListener("change", () => change({ size: at("size").value }));
  at("boxes").addEventListener("change", () => change({ boxes: at("boxes").checked }));
  at("all").addEventListener("click", () => { state.ranges.delete(state.score); change({}); });
  for (const id of ["low", "high"]) {
    at(id).addEventListener("change", () => { setRange(state, state.score, numberOrNull(at("low").value), numberOrNull(at("high").value)); change({}); });
  }
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input[type=number], select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.toLowerCase() !== "b") return;
    // no redraw: what is focused and where the page stands stay
    state.boxes = !state.boxes;
    at("boxes").checked = state.boxes;
    document.body.classList.toggle("no-boxes", !state.boxes);
    remember();
  });
  window.addEventListener("hashchange", () => { state = fromHash(location.hash, set, known); refresh(); detail.update(images, state); });
  refresh();
  if (state.image !== null) detail.update(images, state);
  document.body.dataset.ready = "yes";
}

function fillFacts(set) {
  const tiles = [];
  const tile = (value, text) => tiles.push(make("div", {}, make("dt", { textContent: text }), make("dd", { textContent: value })));
  const objects = set.starts[set.count];
  tile(thousands.format(set.count), set.count === 1 ? "image" : "images");
  const asked = set.columns.has("objects_start") ? mean(set.columns.get("objects_start")) : null;
  const found = set.count ? (objects / set.count).toFixed(2) : "0";
  tile(asked === null ? found : `${asked.toFixed(2)} \u2192 ${found}`, "objects an image");
  if (set.columns.has("accepted")) {
    const judged = set.columns.get("accepted").filter((v) => typeof v === "boolean");
    if (judged.length) tile(`${(100 * judged.filter(Boolean).length / judged.length).toFixed(1)} %`, "accepted");
  }
  tile(thousands.format(set.duplicateOf.size), "near-duplicates");
  for (const [text, value] of set.facts.numbers) tile(value.toFixed(3), text);
  for (const field of set.scores.filter((f) => KNOWN_SCORES.includes(f))) tile(mean(set.columns.get(field)).toFixed(3), `mean ${title(field)}`);
  at("facts").replaceChildren(...tiles);
  at("about").textContent = [`${set.width} \u00d7 ${set.height} pixels`, `${thousands.format(set.classes.length)} classes`, ...set.facts.words].join(" \u00b7 ");
}

function fillControls(set, known) {
  const used = new Uint32Array(set.classes.length);
  for (let i = 0; i < set.count; i++) for (const label of new Set(set.labels.slice(set.starts[i], set.starts[i + 1]))) used[label] += 1;
  const order = [...set.classes.keys()].filter((label) => used[label]).sort((a, b) => (set.classes[a] < set.classes[b] ? -1 : 1));
  at("class").replaceChildren(make("option", { value: "", textContent: "all classes" }),
    ...order.map((label) => make("option", { value: label, textContent: `${set.classes[label]} (${thousands.format(used[label])})` })));
  at("status").replaceChildren(...known.map(({ key, text, count }) => make("option", { value: key, textContent: `${text} (${thousands.format(count)})` })));
  at("score").replaceChildren(...set.scores.map((field) => make("option", { value: field, textContent: title(field) })));
  at("scores").hidden = !set.scores.length;
  at("order").disabled = !set.scores.length;
}

if (window.detkdGallery) start();
else {
  document.body.replaceChildren(make("p", { class: "message", textContent: "gallery.js is missing or damaged. It must lie beside this file: python -m detkd.gallery data.root=DIR writes both." }));
}
