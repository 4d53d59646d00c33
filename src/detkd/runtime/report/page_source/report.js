"use strict";
(() => {
  const empty = (value) => value === "" || Number.isNaN(value);

  function valueOf(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.number !== undefined) return Number(cell.dataset.number);
    return cell.textContent.trim();
  }

  /* Empty cells stay last, numbers come before text; rows that are alike keep their order. */
  function compare(a, b, sign) {
    if (empty(a) || empty(b)) return Number(empty(a)) - Number(empty(b));
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * a.localeCompare(b, "en", { numeric: true });
  }

  function sort(table, column) {
    const heads = table.tHead.rows[0].cells;
    const head = heads[column];
    const numeric = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const next = before === "ascending" ? "descending" : before === "descending" ? "ascending" : numeric ? "descending" : "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => [valueOf(row, column), row]);
    rows.sort((a, b) => compare(a[0], b[0], sign));
    body.append(...rows.map((pair) => pair[1]));
    document.getElementById("said").textContent = `Sorted by ${head.textContent.trim()}, ${next}`;
  }

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column));
      head.append(button);
    });
  }

  /* An address that names a run opens it. */
  function unfold() {
    const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (named instanceof HTMLDetailsElement) {
      named.open = true;
      named.scrollIntoView();
    }
  }
  addEventListener("hashchange", unfold);
  unfold();

  const theme = document.getElementById("theme");
  const KEY = "detkd-report-theme";
  const store = (action) => { try { return action(); } catch (error) { return null; } };  // a browser may keep a file from storing
  function show(name) {
    if (name === "light" || name === "dark") document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
  }
  theme.value = store(() => localStorage.getItem(KEY)) || "";
  if (theme.selectedIndex < 0) theme.value = "";
  show(theme.value);
  theme.addEventListener("change", () => {
    show(theme.value);
    store(() => localStorage.setItem(KEY, theme.value));
  });
  document.getElementById("theme-box").hidden = false;

  addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details.run")) part.open = true; });
})();
