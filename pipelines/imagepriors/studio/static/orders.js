// Orders: the paths in which priors draw codes, over a picture that appears with them.

import { ask } from "./api.js";
import { turns } from "./latest.js";
import { button, el, range } from "./widgets.js";

const SECONDS = 7;

/** The section about orders: `open(tokenizer, cells)` finds those of a grid, `show(image)` draws them over a picture. */
export class OrderPlayer {
  constructor() {
    Object.assign(this, { paths: [], grid: [1, 1], image: null, now: 0, steps: 1, running: 0, greeted: false, opening: turns() });
    this.note = el("p", { className: "note" });
    this.play = button("▶", () => (this.running ? this.stop() : this.start()), { className: "quiet play", "aria-label": "Play the orders" });
    this.slider = range("Codes", 0, { min: 0, max: 1, step: 1 }, (value) => this.go(value));
    this.cards = el("div", { className: "order-cards" });
    this.player = el("div", { className: "order-player", hidden: true }, this.play, this.slider.parentElement);
    this.node = el("section", { "aria-label": "Orders" }, el("h2", {}, "Orders"), this.note, this.player, this.cards);
    new ResizeObserver(() => this.draw()).observe(this.cards);
    new IntersectionObserver((entries) => this.greet(entries.some((entry) => entry.isIntersecting)), { rootMargin: "-20% 0px" }).observe(this.cards);
  }

  /** Play when the paths come into view for the first time, and stop when they leave it. */
  greet(visible) {
    if (!visible) return this.stop();
    if (this.greeted || matchMedia("(prefers-reduced-motion: reduce)").matches || !this.image || !this.paths.length) return;
    this.greeted = true;
    this.start();
  }

  async open(tokenizer, cells) {
    const isLast = this.opening();
    this.stop();
    const { grid } = tokenizer;
    Object.assign(this, { grid, steps: grid[0] * grid[1], now: Infinity, image: null, greeted: false, paths: [] });
    [this.slider.max, this.player.hidden] = [this.steps, true];
    this.cards.replaceChildren();
    this.note.textContent = cells ? "" : "The codes of this tokenizer are in a row: they have no cells on the picture, and a prior draws them in the row's order.";
    if (!cells) return;
    try {
      const found = await ask("orders", { tokenizer: tokenizer.name });
      if (!isLast()) return;
      this.paths = Object.entries(found.orders);
      this.note.textContent = `A prior draws the codes in one of these orders. The finished picture is uncovered cell by cell. ${missing(found.undefined, grid)}`;
      this.cards.replaceChildren(...this.paths.map(([name]) => this.card(name)));
      this.player.hidden = false;
      this.draw();
    } catch (error) {
      if (isLast()) this.note.textContent = error.message;
    }
  }

  card(name) {
    const canvas = el("canvas", { role: "img", "aria-label": `Path of ${name} over ${this.grid.join(" × ")} codes` });
    return el("figure", { className: "order-card" }, canvas, el("figcaption", {}, name));
  }

  /** Draw over this picture, a loaded image element. */
  show(image) {
    this.image = image;
    this.draw();
  }

  go(now) {
    this.stop();
    this.now = now;
    this.draw();
  }

  draw() {
    this.now = Math.min(this.steps, this.now);
    const now = Math.round(this.now);
    if (this.slider.value !== String(now)) this.slider.value = now;
    this.slider.parentElement.querySelector("output").value = `${now} of ${this.steps}`;
    if (this.image) this.paths.forEach(([, cells], index) => trace(this.cards.children[index].firstChild, cells, now, this.grid, this.image));
  }

  tick(time) {
    this.now += (((time - this.before) / 1000) * this.steps) / SECONDS;
    this.before = time;
    this.draw();
    if (this.now < this.steps) this.running = requestAnimationFrame((next) => this.tick(next));
    else this.stop();
  }

  start() {
    if (this.now >= this.steps) this.now = 0;
    this.before = performance.now();
    this.running = requestAnimationFrame((time) => this.tick(time));
    this.label("❚❚", "Pause the orders");
  }

  stop() {
    cancelAnimationFrame(this.running);
    this.running = 0;
    this.label("▶", "Play the orders");
  }

  label(sign, text) {
    this.play.textContent = sign;
    this.play.setAttribute("aria-label", text);
  }
}

function missing(names, grid) {
  return names.length ? `Undefined on ${grid.join(" × ")} codes: ${names.join(", ")}.` : "";
}

/** Draw the first `now` cells of a path and of the picture. */
function trace(canvas, cells, now, [rows, columns], image) {
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(side * scale));
  if (!width || !height) return;
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const [x, y] = [(cell) => ((cell % columns) * width) / columns, (cell) => (Math.floor(cell / columns) * height) / rows];
  const [w, h] = [width / columns, height / rows];
  pen.save();
  pen.beginPath();
  for (const cell of cells.slice(0, now)) pen.rect(Math.floor(x(cell)), Math.floor(y(cell)), Math.ceil(w), Math.ceil(h));
  pen.clip();
  pen.imageSmoothingEnabled = image.naturalWidth > 128;
  pen.drawImage(image, 0, 0, width, height);
  pen.restore();
  // Jumps to cells that are not beside the last one are drawn fainter, because they cross the picture.
  const [steps, jumps] = [new Path2D(), new Path2D()];
  for (let index = 1; index < now; index++) {
    const [from, to] = [cells[index - 1], cells[index]];
    const beside = Math.abs(x(to) - x(from)) < 1.5 * w && Math.abs(y(to) - y(from)) < 1.5 * h;
    const path = beside ? steps : jumps;
    path.moveTo(x(from) + w / 2, y(from) + h / 2);
    path.lineTo(x(to) + w / 2, y(to) + h / 2);
  }
  const thin = scale * Math.min(1.25, Math.max(0.5, w / scale / 8));
  pen.lineCap = "round";
  for (const [path, shade, line] of [[jumps, 0.15, 0.35], [steps, 0.5, 1]]) {
    for (const [colour, thick] of [[`rgb(0 0 0 / ${shade})`, 2.4 * thin], [`rgb(255 255 255 / ${line})`, thin]]) {
      [pen.strokeStyle, pen.lineWidth] = [colour, thick];
      pen.stroke(path);
    }
  }
  if (!now || now === cells.length) return;
  [pen.strokeStyle, pen.lineWidth] = [style.color, 2.5 * scale];
  pen.strokeRect(x(cells[now - 1]), y(cells[now - 1]), w, h);
}
