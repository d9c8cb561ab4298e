// Two sides of a comparison: their settings, pictures and values.

import { el } from "./widgets.js";

/** One side: its settings, and the state of its job. */
export function side(letter, ...parts) {
  return el("section", { className: "compare-side", "aria-label": `Side ${letter}` }, parts);
}

/** Pictures side by side, in `columns` with these names. */
export function rowsOf(columns) {
  const node = el("div", { className: "compared" });

  /** Show pictures [column][row] with notes [column][row] and a caption per row; where one is missing is an empty frame. */
  node.show = (sources, notes = [], captions = []) => {
    const length = Math.max(...sources.map((column) => column.length));
    while (node.children.length > length) node.lastChild.remove();
    for (let row = 0; row < length; row++) {
      const figure = node.children[row] ?? node.appendChild(figureOf(columns, row));
      columns.forEach((name, column) => {
        const source = sources[column][row];
        const image = figure.querySelectorAll("img")[column];
        image.hidden = !source;
        if (source) image.src = source;
        figure.querySelectorAll("small")[column].textContent = [name, notes[column]?.[row]].filter(Boolean).join(": ");
      });
      figure.querySelector("figcaption").textContent = captions[row] ?? "";
    }
  };
  return node;
}

function figureOf(columns, row) {
  const column = (name) => el("div", {}, el("div", { className: "frame" }, el("img", { alt: `Picture ${row + 1}, ${name}`, className: "crisp", hidden: true })), el("small", {}));
  const figure = el("figure", {}, columns.map(column), el("figcaption", {}));
  figure.style.setProperty("--columns", columns.length);
  return figure;
}

/** A table of values, a row per name and a column per side; `null` where a side has none. */
export function valuesTable(names, [left, right]) {
  const cell = (value) => el("td", {}, value ?? "–");
  return el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, ""), el("th", { scope: "col" }, "A"), el("th", { scope: "col" }, "B"))),
    el("tbody", {}, names.map((name) => el("tr", {}, el("th", { scope: "row" }, name), cell(left[name]), cell(right[name])))));
}
