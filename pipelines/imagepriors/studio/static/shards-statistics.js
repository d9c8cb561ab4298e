// Statistics of shards: usage of the codebook, entropy per position, rows per class.

import { curve, heatmap } from "./charts.js";
import { turns } from "./latest.js";
import { capital, count } from "./text.js";
import { el, empty, JobStatus } from "./widgets.js";

const MOST_CLASSES = 1000;

export class Statistics {
  constructor() {
    this.job = new JobStatus();
    this.turn = turns();
    this.body = el("div");
    this.node = el("div", {}, this.job.node, this.body);
  }

  async show(shards, split) {
    if (this.shards === shards && this.split === split) return;
    const isLast = this.turn();
    Object.assign(this, { shards, split });
    this.body.replaceChildren();
    const found = await this.job.start("statistics", { shards: shards.name, split });
    if (!isLast()) return;
    if (!found) {
      this.shards = null;
      return;
    }
    this.job.clear();
    if (!found.rows) this.body.replaceChildren(empty("This split has no rows."));
    else this.body.replaceChildren(...found.codes.map((codes) => card(codes, found.rows)), classes(found.labels, shards.class_names));
  }
}

function card(codes, rows) {
  const most = Math.log2(codes.codebook_size);
  const facts = [
    ["Used", `${count(codes.used)} of ${count(codes.codebook_size)} codes (${percent(codes.used / codes.codebook_size)})`],
    ["Perplexity", codes.perplexity.toFixed(1)],
    ["Entropy", `${codes.entropy_bits.toFixed(2)} bits, of at most ${most.toFixed(2)}`],
    ["Counted", `${count(codes.codes)} codes in ${count(rows)} rows`],
  ];
  const few = rows < codes.codebook_size
    ? el("p", { className: "note" }, `From ${count(rows)} rows, the entropy of a position is at most ${Math.log2(rows).toFixed(1)} bits: it is estimated too low.`) : null;
  return el("section", { className: "card" },
    el("h2", {}, title(codes.name)),
    el("dl", { className: "facts" }, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("div", { className: "charts" },
      el("figure", {}, el("figcaption", {}, "Share of each code (dashed: the mean)"), curve(codes.curve, codes.codes)),
      codes.entropies.length > 1
        ? el("figure", {}, el("figcaption", {}, "Entropy per position"), heatmap(codes.entropies, codes.grid, title(codes.name)), few) : few));
}

function title(name) {
  return capital(name.replace(/^cond_/, "").replace(/^scale_(\d+)$/, "scale $1 × $1"));
}

function percent(share) {
  return `${(100 * share).toFixed(share < 1 && share > 0.995 ? 1 : 0)} %`;
}

function classes(found, names) {
  const shown = found.length > MOST_CLASSES ? [...found].sort((a, b) => b[1] - a[1]).slice(0, MOST_CLASSES) : found;
  const most = Math.max(...shown.map(([, rows]) => rows));
  const bars = shown.map(([label, rows]) => {
    const bar = el("span", { className: "bar" });
    bar.style.width = `${(100 * rows) / most}%`;
    return el("li", {}, el("span", {}, label < 0 ? "without a class" : names[label] || `class ${label}`), el("span", {}, bar), el("span", {}, count(rows)));
  });
  const text = found.length > MOST_CLASSES ? `The ${count(MOST_CLASSES)} most frequent of ${count(found.length)} classes` : `Rows per class, of ${count(found.length)} classes`;
  return el("section", { className: "card" }, el("h2", {}, "Classes"), el("p", { className: "note" }, text),
    el("ul", { className: "bars", tabIndex: 0, "aria-label": "Rows per class" }, bars));
}
