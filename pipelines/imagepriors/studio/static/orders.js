// Orders: the paths in which priors draw codes, over a picture that appears with them.

import { ask } from "./api.js";
import { button, el, range } from "./widgets.js";

const SECONDS = 7;

/** The section about orders: `open(tokenizer)` finds those of a grid, `show(image)` draws them over a picture. */
export function orderPlayer() {
  const note = el("p", { className: "note" });
  const play = button("▶", () => (running ? stop() : start()), { className: "quiet play", "aria-label": "Play the orders" });
  const slider = range("Codes", 0, { min: 0, max: 1, step: 1 }, (value) => { stop(); now = value; draw(); });
  const cards = el("div", { className: "order-cards" });
  const player = el("div", { className: "order-player", hidden: true }, play, slider.parentElement);
  const node = el("section", { "aria-label": "Orders" }, el("h2", {}, "Orders"), note, player, cards);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let [paths, grid, image] = [[], [1, 1], null];
  let [now, steps, running, before, greeted] = [0, 1, 0, 0, false];

  new ResizeObserver(() => draw()).observe(cards);
  new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return stop();
    if (greeted || still.matches || !image || !paths.length) return;
    greeted = true;
    start();
  }, { rootMargin: "-20% 0px" }).observe(cards);

  async function open(tokenizer, cells) {
    stop();
    [grid, steps, now, image, greeted] = [tokenizer.grid, tokenizer.grid[0] * tokenizer.grid[1], Infinity, null, false];
    [slider.max, player.hidden] = [steps, true];
    cards.replaceChildren();
    paths = [];
    if (!cells) {
      note.textContent = "The codes of this tokenizer are in a row: they have no cells on the picture, and a prior draws them in the row's order.";
      return;
    }
    try {
      const found = await ask("orders", { tokenizer: tokenizer.name });
      paths = Object.entries(found.orders);
      note.textContent = `A prior draws the codes in one of these orders. The finished picture is uncovered cell by cell. ${missing(found.undefined, grid)}`;
      cards.replaceChildren(...paths.map(([name]) => card(name)));
      player.hidden = false;
      draw();
    } catch (error) {
      note.textContent = error.message;
    }
  }

  function card(name) {
    const canvas = el("canvas", { role: "img", "aria-label": `Path of ${name} over ${grid.join(" × ")} codes` });
    return el("figure", { className: "order-card" }, canvas, el("figcaption", {}, name));
  }

  /** Draw over this picture, a loaded image element. */
  function show(picture) {
    image = picture;
    draw();
  }

  function draw() {
    now = Math.min(steps, now);
    if (slider.value !== String(Math.round(now))) slider.value = Math.round(now);
    slider.parentElement.querySelector("output").value = `${Math.round(now)} of ${steps}`;
    if (image) paths.forEach(([, cells], index) => trace(cards.children[index].firstChild, cells, Math.round(now), grid, image));
  }

  function tick(time) {
    now = Math.min(steps, now + (((time - before) / 1000) * steps) / SECONDS);
    before = time;
    draw();
    if (now < steps) running = requestAnimationFrame(tick);
    else stop();
  }

  function start() {
    if (now >= steps) now = 0;
    before = performance.now();
    running = requestAnimationFrame(tick);
    label("❚❚", "Pause the orders");
  }

  function stop() {
    cancelAnimationFrame(running);
    running = 0;
    label("▶", "Play the orders");
  }

  function label(sign, text) {
    play.textContent = sign;
    play.setAttribute("aria-label", text);
  }

  return { node, open, show };
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
