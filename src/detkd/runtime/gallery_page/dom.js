/* Elements are built by hand: no text of the set is ever read as HTML. */

function make(tag, settings, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(settings || {})) {
    if (key === "class") element.className = value;
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function draw(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function at(id) {
  return document.getElementById(id);
}

/* An image with its boxes on top. named: whose class names are written, of "all", "none", or "some" (where there is room). */
function framed(set, i, label, settings) {
  const picture = make("img", { alt: "", decoding: "async", draggable: false, ...settings.image });
  picture.width = set.width;
  picture.height = set.height;
  picture.addEventListener("error", () => frame.classList.add("missing"));
  picture.src = set.image(i);
  const frame = make("div", { class: "frame" }, picture, overlay(set, i, label, settings.named));
  frame.style.aspectRatio = `${set.width} / ${set.height}`;
  return frame;
}

function overlay(set, i, label, named) {
  const layer = make("div", { class: "boxes" });
  const all = set.boxes(i);
  for (const { label: own, box: [x1, y1, x2, y2] } of all) {
    const wide = (x2 - x1) / set.width, high = (y2 - y1) / set.height;
    const box = make("div", { class: label !== null && own !== label ? "box other" : "box" });
    box.style.left = `${100 * x1 / set.width}%`;
    box.style.top = `${100 * y1 / set.height}%`;
    box.style.width = `${100 * wide}%`;
    box.style.height = `${100 * high}%`;
    box.style.setProperty("--hue", hue(own));
    if (named === "all" || (named === "some" && (all.length <= 3 || (wide > 0.2 && high > 0.14)))) {
      const name = make("span", { class: "name", textContent: set.classes[own] });
      if (y1 / set.height < 0.06) name.classList.add("inside");
      if (x1 + x2 > set.width) name.classList.add("right");
      box.append(name);
    }
    layer.append(box);
  }
  return layer;
}
