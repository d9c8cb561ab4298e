// Shards: rows of a dataset, statistics of its codes, its failures, and what identifies it.

import { ask } from "./api.js";
import { table } from "./charts.js";
import { turns } from "./latest.js";
import { Rows } from "./shards-rows.js";
import { Statistics } from "./shards-statistics.js";
import { count, size } from "./text.js";
import { button, el, empty, number, numberOf, select, setOptions } from "./widgets.js";

export const shards = { id: "shards", title: "Shards", mount };

function mount(panel, contents) {
  if (!contents.shards.length) {
    panel.append(empty("There are no token shards here. Tokenize a dataset, and open its run folder."));
    return;
  }
  const views = [
    { title: "Rows", ...withFilter(new Rows()) },
    { title: "Statistics", ...plain(new Statistics()) },
    { title: "Failures", ...plain(new About(failures)) },
    { title: "Dataset", ...plain(new About(facts)) },
  ];
  const dataset = select("Shards", contents.shards.map((one) => one.name), contents.shards[0].name, changed);
  const split = select("Split", [], "", () => show());
  const place = el("div", { className: "controls" }, dataset.parentElement, split.parentElement);
  const switches = views.map((view) => button(view.title, () => choose(view), { className: "quiet" }));
  let chosen = views[0];

  function choose(view) {
    chosen = view;
    views.forEach((one, index) => {
      one.node.hidden = one !== view;
      switches[index].setAttribute("aria-pressed", one === view);
      if (one.controls) one.controls.hidden = one !== view;
    });
    show();
  }

  function changed() {
    const splits = found().splits;
    setOptions(split, Object.entries(splits).map(([name, rows]) => [name, `${name} (${count(rows)} rows)`]));
    if ("val" in splits) split.value = "val";
    show();
  }

  const found = () => contents.shards.find((one) => one.name === dataset.value);
  const show = () => chosen.show(found(), split.value);

  panel.append(el("div", { className: "columns" },
    el("div", { className: "shards-side" }, place, views.map((view) => view.controls)),
    el("div", { className: "stage" },
      el("div", { className: "actions shards-views", role: "group", "aria-label": "What to show of the shards" }, switches),
      views.map((view) => view.node))));
  changed();
  choose(views[0]);
}

function plain(view) {
  return { node: view.node, show: (shards, split) => view.show(shards, split) };
}

/** The rows, with a form that filters them and one that goes to a row. */
function withFilter(rows) {
  const label = select("Class", [], "");
  const unnamed = number("Class", null, { min: -1, step: 1, placeholder: "all classes" }, undefined, "-1: rows without a class");
  const text = el("input", { type: "search", id: "shards-text", autocomplete: "off" });
  const view = number("View", null, { min: 0, max: 255, step: 1, placeholder: "all views" }, undefined, "0: centre crop; 1: its mirror; 2 and more: further crops");
  const clear = button("Clear", () => { filter.reset(); rows.filter(null); });
  const filter = el("form", { className: "controls", "aria-label": "Filter the rows" },
    el("h2", {}, "Filter"), label.parentElement, unnamed.parentElement,
    el("div", { className: "field" }, el("label", { htmlFor: text.id }, "Text in key or caption"), text),
    view.parentElement,
    el("div", { className: "actions" }, el("button", { type: "submit", className: "main" }, "Filter"), clear));
  const target = el("input", { type: "text", id: "shards-target", required: true, autocomplete: "off", placeholder: "120 or a key", "aria-describedby": "shards-target-help" });
  const go = el("form", { className: "controls", "aria-label": "Go to a row" },
    el("div", { className: "field" }, el("label", { htmlFor: target.id }, "Index or key of a row"), target, el("small", { id: "shards-target-help" },
      "The index counts from 0, as the format does; all other numbers of rows, columns and places on this page count from 1.")),
    el("div", { className: "actions" }, el("button", { type: "submit" }, "Go")));
  filter.addEventListener("submit", (event) => {
    event.preventDefault();
    const values = {
      ...(label.value === "" ? {} : { label: Number(label.value) }),
      ...(numberOf(unnamed) === null ? {} : { label: numberOf(unnamed) }),
      ...(numberOf(view) === null ? {} : { view: numberOf(view) }),
      ...(text.value ? { text: text.value } : {}),
    };
    rows.filter(Object.keys(values).length ? values : null);
  });
  go.addEventListener("submit", (event) => { event.preventDefault(); filter.reset(); rows.go(target.value.trim()); });

  function show(shards, split) {
    if (rows.shards !== shards || rows.split !== split) filter.reset();
    if (rows.shards !== shards) {
      unnamed.parentElement.hidden = shards.class_names.length > 0;
      label.parentElement.hidden = !unnamed.parentElement.hidden;
      setOptions(label, [["", "all"], ...shards.class_names.map((name, index) => [index, name]), [-1, "without a class"]], "");
    }
    return rows.show(shards, split);
  }
  const controls = el("details", { open: matchMedia("(min-width: 48rem)").matches },
    el("summary", {}, "Filter and go to"), filter, go);
  return { node: rows.node, controls, show };
}

/** A part of the page about a dataset, which `render(about, shards)` makes. */
class About {
  constructor(render) {
    this.render = render;
    this.node = el("div");
    this.turn = turns();
  }

  async show(shards) {
    if (this.shown === shards) return;
    const isLast = this.turn();
    this.shown = shards;
    this.node.replaceChildren(empty("Reading …"));
    try {
      const about = await ask("about", { shards: shards.name });
      if (isLast()) this.node.replaceChildren(...this.render(about, shards));
    } catch (error) {
      if (!isLast()) return;
      this.shown = null;
      this.node.replaceChildren(empty(error.message));
    }
  }
}

function failures(about) {
  if (!about.failures.length) {
    const samples = about.splits.reduce((sum, split) => sum + split.samples, 0);
    return [empty(`No failures: all ${count(samples)} samples have rows.`)];
  }
  return about.failures.map((kind) => el("details", { className: "card", open: true },
    el("summary", {}, `${kind.reason}: ${count(kind.count)} ${kind.count === 1 ? "sample" : "samples"}`),
    table(["Split", "Key", "Reason"], kind.samples.map((one) => [one.split, one.key, one.reason])),
    kind.count > kind.samples.length ? el("p", { className: "note" }, `The first ${kind.samples.length} are shown.`) : null));
}

function facts(about, shards) {
  const values = [
    ["Grid", `${shards.grid.join(" × ")} codes per picture`],
    ["Codebook", `${count(shards.codebook_size)} codes`],
    ["Tokenizer", shards.tokenizer ? `${shards.tokenizer} (${about.codes_of})` : about.codes_of],
    ["Conditions", Object.keys(shards.conditions).join(", ") || "none"],
    ["Scales", shards.scales.join(", ") || "none"],
    ["Orders", about.orders.join(", ")],
    ["Formats", about.formats.join(", ")],
    ["Licence", about.license || "unknown"],
    ["Fingerprint", about.fingerprint],
  ];
  const splits = about.splits.map((one) => [one.name, count(one.rows), count(one.samples), count(one.failures), count(one.shards), size(one.bytes)]);
  return [
    el("dl", { className: "card facts" }, values.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("h3", {}, "Splits"), table(["Split", "Rows", "Samples", "Failures", "Shards", "Size"], splits),
    el("h3", {}, "Columns"), table(["Column", "Type"], about.columns.map(([name, type]) => [name, plainType(type)])),
  ];
}

function plainType(type) {
  return type.replace(/^fixed_size_list<element: (\w+) not null>\[(\d+)\]$/, "$2 × $1");
}
