/* One image, large, with all that is known of it. */

function makeDetail(set, moved, closed) {
  const dialog = at("detail"), stage = at("detail-stage"), facts = at("detail-facts"), course = at("detail-course");
  let shown = [], image = null, state = null;

  /* How many images have a lower value, as a share of those that have one. */
  function rank(field, value) {
    let lower = 0, known = 0;
    for (const v of set.columns.get(field)) if (typeof v === "number") { known += 1; if (v < value) lower += 1; }
    return known > 1 ? `above ${Math.floor(100 * lower / known)} % of images` : "";
  }

  function recordTable(i) {
    const body = make("tbody");
    const names = [...set.scores, ...[...set.columns.keys()].filter((name) => !set.scores.includes(name)).sort()];
    for (const name of names) {
      const value = set.columns.get(name)[i];
      const place = KNOWN_SCORES.includes(name) && typeof value === "number" ? rank(name, value) : "";
      body.append(make("tr", {}, make("th", { scope: "row", textContent: title(name) }), make("td", { textContent: written(value) }), make("td", { class: "muted", textContent: place })));
    }
    return make("table", { class: "record" }, body);
  }

  function boxTable(i) {
    const body = make("tbody");
    const outlines = stage.querySelectorAll(".box");
    set.boxes(i).forEach(({ label, box: [x1, y1, x2, y2] }, number) => {
      const swatch = make("span", { class: "swatch" });
      swatch.style.setProperty("--hue", hue(label));
      const row = make("tr", {}, make("th", { scope: "row" }, swatch, make("span", { textContent: set.classes[label] })),
        make("td", { textContent: `${Math.round(x2 - x1)} \u00d7 ${Math.round(y2 - y1)}` }),
        make("td", { class: "muted", textContent: `at ${Math.round(x1)}, ${Math.round(y1)}` }));
      row.addEventListener("pointerenter", () => outlines[number].classList.add("strong"));
      row.addEventListener("pointerleave", () => outlines[number].classList.remove("strong"));
      body.append(row);
    });
    return make("table", { class: "record" }, body);
  }

  function link(i, text) {
    const button = make("button", { type: "button", class: "link", textContent: text });
    button.addEventListener("click", () => { show(i); moved(i); });
    return button;
  }

  function likeness(i) {
    const first = set.duplicateOf.get(i);
    const others = [...set.duplicateOf].filter(([, of]) => of === i).map(([other]) => other);
    const parts = [];
    if (first !== undefined) parts.push(make("div", { class: "pair" }, framed(set, first, null, { image: {}, named: "none" }), make("p", {}, "A near-duplicate of ", link(first, `image ${first}`))));
    if (others.length) parts.push(make("p", {}, "Near-duplicates of it: ", ...others.slice(0, 12).flatMap((other) => [link(other, String(other)), " "]), others.length > 12 ? `and ${others.length - 12} more` : null));
    return parts;
  }

  function courseOf(i) {
    const parts = [];
    if (set.steps.has(i)) {
      const strip = make("img", { class: "strip", alt: "", src: set.strip(i) });
      parts.push(make("figure", {}, make("figcaption", { textContent: "From start to end" }), make("div", { class: "strip-box", tabIndex: 0 }, strip)));
    }
    const trace = set.course(i);
    if (trace) {
      const charts = [["loss", "Loss of its batch"], ["objects", "Objects an image in its batch"]].map(([key, text]) => chart(trace.iterations, trace[key], text));
      parts.push(make("div", { class: "charts" }, ...charts));
    }
    return parts;
  }

  function show(i) {
    image = i;
    const position = shown.indexOf(i);
    at("detail-title").textContent = `Image ${thousands.format(i)}`;
    at("detail-place").textContent = position < 0 ? "not among those shown" : `${thousands.format(position + 1)} of ${thousands.format(shown.length)}`;
    at("previous").disabled = position <= 0;
    at("next").disabled = position >= shown.length - 1;
    stage.replaceChildren(framed(set, i, state.label, { image: {}, named: "all" }));
    stage.style.setProperty("--ratio", set.width / set.height);
    course.replaceChildren(...courseOf(i));
    stage.classList.toggle("above-strip", set.steps.has(i));
    stage.classList.toggle("above-charts", set.course(i) !== null);
    const boxes = set.starts[i + 1] - set.starts[i];
    facts.replaceChildren(
      make("h3", { textContent: "Record" }), set.columns.size ? recordTable(i) : make("p", { class: "muted", textContent: "Nothing was recorded." }),
      ...likeness(i),
      make("h3", { textContent: boxes === 1 ? "1 object" : `${boxes} objects` }), boxTable(i),
      make("p", { class: "muted" }, make("a", { href: set.image(i), textContent: set.path(i), target: "_blank", rel: "noopener" })));
    if (!dialog.open) dialog.showModal();
    for (const near of [shown[position + 1], shown[position - 1]]) if (position >= 0 && near !== undefined) new Image().src = set.image(near);
  }

  function step(by) {
    const position = shown.indexOf(image);
    const next = position < 0 ? shown[0] : shown[position + by];
    if (next !== undefined) { show(next); moved(next); }
  }

  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  at("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { const last = image; image = null; closed(last); });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.closest(".strip-box") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else return;
    event.preventDefault();
  });

  return {
    update: (images, now) => {
      shown = images;
      state = now;
      if (now.image === null) { if (dialog.open) dialog.close(); } else show(now.image);
    },
  };
}

/* A line over iterations, with its first and last value in words. */
function chart(iterations, values, text) {
  if (!Array.isArray(values) || values.length < 2) return null;
  const top = Math.max(...values), bottom = Math.min(...values), first = iterations[0], last = iterations[iterations.length - 1];
  const x = (v) => (last > first ? 100 * (v - first) / (last - first) : 0);
  const y = (v) => (top > bottom ? 29 - 28 * (v - bottom) / (top - bottom) : 15);
  const svg = draw("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", class: "line", "aria-hidden": "true" });
  svg.append(draw("polyline", { points: values.map((v, k) => `${x(iterations[k]).toFixed(2)},${y(v).toFixed(2)}`).join(" ") }));
  const caption = `${text}: ${written(values[0])} \u2192 ${written(values[values.length - 1])} in ${thousands.format(last)} iterations`;
  return make("figure", {}, make("figcaption", { textContent: caption }), svg);
}
