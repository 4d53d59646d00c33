/* The distribution of a score: all images in grey, those that the other filters leave in colour; drag to select a range. */

const BINS = 25;

function bins(values, images, [low, high]) {
  const counts = new Array(BINS).fill(0);
  const place = (v) => Math.max(0, Math.min(BINS - 1, Math.floor((v - low) / (high - low) * BINS)));
  for (const i of images) if (typeof values[i] === "number") counts[place(values[i])] += 1;
  return counts;
}

function makeHistogram(set, choose) {
  const svg = at("histogram");
  const everyone = Array.from({ length: set.count }, (_, i) => i);
  let axis = [0, 1], from = null, to = null, state = null;
  svg.setAttribute("viewBox", `0 0 ${BINS * 4} 28`);
  svg.setAttribute("preserveAspectRatio", "none");

  const edge = (bin) => Number((axis[0] + (axis[1] - axis[0]) * bin / BINS).toPrecision(4));
  function binAt(event) {
    const { left, width } = svg.getBoundingClientRect();
    return Math.max(0, Math.min(BINS - 1, Math.floor((event.clientX - left) / width * BINS)));
  }
  function drag(event) {
    to = binAt(event);
    const selection = svg.querySelector(".selection");
    selection.setAttribute("x", 4 * Math.min(from, to));
    selection.setAttribute("width", 4 * (Math.abs(to - from) + 1));
  }
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    svg.setPointerCapture(event.pointerId);
    from = binAt(event);
    drag(event);
    event.preventDefault();
  });
  svg.addEventListener("pointermove", (event) => { if (from !== null) drag(event); });
  svg.addEventListener("pointercancel", () => { from = null; });
  svg.addEventListener("pointerup", () => {
    if (from === null) return;
    const first = Math.min(from, to), last = Math.max(from, to);
    from = null;
    choose(first === 0 ? null : edge(first), last === BINS - 1 ? null : edge(last + 1));
  });

  return (now) => {
    state = now;
    const values = set.columns.get(state.score);
    axis = extent(values);
    const all = bins(values, everyone, axis), some = bins(values, select(set, state, state.score), axis);
    const tallest = Math.max(1, ...all);
    // what is not empty stays in sight, however small
    const height = (count) => (count ? Math.max(0.7, 26 * count / tallest) : 0);
    const [low, high] = state.ranges.get(state.score) || [null, null];
    const x = (value) => Math.max(0, Math.min(BINS * 4, BINS * 4 * (value - axis[0]) / (axis[1] - axis[0])));
    const left = low === null ? 0 : x(low), right = high === null ? BINS * 4 : x(high);
    svg.replaceChildren(draw("rect", { class: low === null && high === null ? "selection none" : "selection", x: left, y: 0, width: Math.max(0.3, right - left), height: 28 }));
    for (let bin = 0; bin < BINS; bin++) {
      const inside = 4 * bin + 2 >= left && 4 * bin + 2 <= right;
      svg.append(draw("rect", { class: "every", x: 4 * bin + 0.4, y: 28 - height(all[bin]), width: 3.2, height: height(all[bin]) }));
      const bar = draw("rect", { class: inside ? "some" : "some out", x: 4 * bin + 0.4, y: 28 - height(some[bin]), width: 3.2, height: height(some[bin]) });
      const tip = draw("title", {});
      tip.textContent = `${edge(bin)} to ${edge(bin + 1)}: ${thousands.format(some[bin])} of ${thousands.format(all[bin])} images`;
      const area = draw("rect", { class: "area", x: 4 * bin, y: 0, width: 4, height: 28 });
      area.append(tip);
      svg.append(bar, area);
    }
    at("low").placeholder = written(axis[0]);
    at("high").placeholder = written(axis[1]);
    at("low").value = low === null ? "" : low;
    at("high").value = high === null ? "" : high;
    at("all").disabled = low === null && high === null;
  };
}
