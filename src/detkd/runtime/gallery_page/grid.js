/* The grid of thumbnails, filled as it is scrolled. */

const CHUNK = 120;

function makeGrid(set, open) {
  const grid = at("grid"), more = at("more");
  let shown = [], drawn = 0, state = null;

  function card(position) {
    const i = shown[position];
    const value = state.score === null ? null : set.columns.get(state.score)[i];
    const names = [...new Set(set.boxes(i).map(({ label }) => set.classes[label]))].join(", ");
    const marks = [];
    if (set.columns.has("accepted") && set.columns.get("accepted")[i] === false) marks.push(make("span", { class: "mark bad", textContent: "rejected" }));
    if (set.duplicateOf.has(i)) marks.push(make("span", { class: "mark", textContent: `\u2248 ${set.duplicateOf.get(i)}`, title: `near-duplicate of image ${set.duplicateOf.get(i)}` }));
    if (set.steps.has(i)) marks.push(make("span", { class: "mark quiet", textContent: "steps" }));
    const foot = make("span", { class: "foot" },
      make("span", { class: "number", textContent: thousands.format(i) }), ...marks, make("span", { class: "spacer" }),
      make("span", { class: "value", textContent: state.score === null ? "" : brief(set, state.score, value) }));
    const made = make("button", { class: "card", type: "button", "aria-label": `image ${i}: ${names || "no objects"}, ${title(state.score || "")} ${written(value)}` },
      framed(set, i, state.label, { image: { loading: "lazy" }, named: state.size === "s" ? "none" : "some" }), foot);
    made.dataset.position = position;
    return made;
  }

  function extend() {
    const end = Math.min(shown.length, drawn + CHUNK);
    const fragment = document.createDocumentFragment();
    for (; drawn < end; drawn++) fragment.append(card(drawn));
    grid.append(fragment);
    more.textContent = drawn < shown.length ? `${thousands.format(drawn)} of ${thousands.format(shown.length)}; more as you scroll` : "";
  }

  const watcher = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting) || drawn >= shown.length) return;
    extend();
    // asked again, because an observer tells of changes alone, and a tall window may still see the end
    watcher.unobserve(more);
    watcher.observe(more);
  }, { rootMargin: "1200px" });
  watcher.observe(more);

  function columns() {
    const cards = grid.children, top = cards.length ? cards[0].offsetTop : 0;
    let n = 0;
    while (n < cards.length && cards[n].offsetTop === top) n += 1;
    return Math.max(1, n);
  }

  function focus(position) {
    while (position >= drawn && drawn < shown.length) extend();
    const target = grid.children[Math.max(0, Math.min(shown.length - 1, position))];
    if (target) { target.focus({ preventScroll: true }); target.scrollIntoView({ block: "nearest" }); }
  }

  grid.addEventListener("click", (event) => {
    const target = event.target.closest(".card");
    if (target) open(shown[Number(target.dataset.position)]);
  });
  grid.addEventListener("keydown", (event) => {
    const target = event.target.closest(".card");
    if (!target || event.ctrlKey || event.metaKey || event.altKey) return;
    const position = Number(target.dataset.position);
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns(), Home: -position, End: drawn - 1 - position };
    if (!(event.key in moves)) return;
    event.preventDefault();
    focus(Math.max(0, position + moves[event.key]));
  });

  return {
    focus: (image) => focus(shown.indexOf(image)),
    show: (images, now) => {
      shown = images;
      state = now;
      drawn = 0;
      grid.className = `grid size-${now.size}`;
      grid.replaceChildren();
      extend();
      watcher.unobserve(more);
      watcher.observe(more);
      if (!images.length) more.textContent = "No image fits. Take a filter away.";
    },
  };
}
