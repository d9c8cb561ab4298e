// Elements that all parts of the page use.

import { run } from "./api.js";

/** Make an element: properties, `on…` listeners, `data`, `aria-…` and other attributes, and children. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name in made && !name.includes("-")) made[name] = value;
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** Make an element of SVG. */
export function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

let fields = 0;

/** A label above an input. Returns the input; its `parentElement` is what to place. */
function field(label, input, help) {
  input.id = `field-${++fields}`;
  const note = help ? el("small", { id: `${input.id}-help` }, help) : null;
  if (note) input.setAttribute("aria-describedby", note.id);
  el("div", { className: "field" }, el("label", { htmlFor: input.id }, label), input, note);
  return input;
}

/** A choice; options are texts, or [value, text]. */
export function select(label, options, value, onchange = () => {}) {
  const made = field(label, el("select", { onchange: () => { made.title = nameOf(made); onchange(made.value); } }));
  setOptions(made, options, value);
  return made;
}

/** Replace the options of a select, and keep its value where it is still there. */
export function setOptions(input, options, value = input.value) {
  input.replaceChildren(...options.map((one) => {
    const [key, text] = Array.isArray(one) ? one : [one, one];
    return el("option", { value: key }, text);
  }));
  if ([...input.options].some((option) => option.value === String(value))) input.value = value;
  input.title = nameOf(input);
}

/** The text of the chosen option, which may be too long for the field. */
function nameOf(input) {
  return input.selectedOptions[0]?.textContent ?? "";
}

/** A number; `limits` are min, max and step. An empty field counts as null. */
export function number(label, value, limits, onchange = () => {}, help = "") {
  const input = el("input", { type: "number", inputMode: "decimal", ...limits, value: value ?? "" });
  input.addEventListener("change", () => input.reportValidity() && onchange(numberOf(input)));
  return field(label, input, help);
}

/** The value of a number field, null where it is empty. */
export function numberOf(input) {
  return input.value === "" ? null : Number(input.value);
}

/** A slider that shows its value. */
export function range(label, value, limits, oninput = () => {}, help = "") {
  const input = el("input", { type: "range", ...limits });
  input.value = value;
  const shown = el("output", {}, String(value));
  input.addEventListener("input", () => { shown.value = input.value; oninput(Number(input.value)); });
  const made = field(label, input, help);
  made.parentElement.querySelector("label").append(shown);
  return made;
}

/** A button; `switchOff` makes it do nothing. */
export function button(text, onclick, properties = {}) {
  const act = (event) => made.getAttribute("aria-disabled") !== "true" && onclick(event);
  const made = el("button", { type: "button", onclick: act, ...properties }, text);
  return made;
}

/** Switch a button off, or on again; it keeps the focus, which a disabled one would lose. */
export function switchOff(control, off) {
  control.setAttribute("aria-disabled", off);
}

/** A button that copies the text that `text()` returns. */
export function copyButton(text, label = "Copy") {
  const made = button(label, async () => {
    made.textContent = await copy(text()) ? "Copied" : "The browser refuses";
    setTimeout(() => { made.textContent = label; }, 1500);
  }, { className: "quiet" });
  return made;
}

/** Returns whether the text is in the clipboard. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // it is refused, or the page is not on https or this machine, and has no clipboard
    const [area, before] = [el("textarea", { value: text }), document.activeElement];
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    return done;
  }
}

/** A picture with a caption. Small pictures are enlarged without smoothing. */
export function picture(source, alt, caption = "") {
  const image = el("img", { alt, src: source, draggable: false });
  image.addEventListener("load", () => image.classList.toggle("crisp", image.naturalWidth <= 128));
  return el("figure", { className: "picture" }, image, caption ? el("figcaption", {}, caption) : null);
}

/** Pictures in a grid; `show(sources)` replaces them, and keeps elements so that they do not flicker. */
export function pictures(alt, className = "pictures") {
  const made = el("div", { className });
  made.show = (sources, captions = []) => {
    while (made.children.length > sources.length) made.lastChild.remove();
    sources.forEach((source, index) => {
      const known = made.children[index];
      if (known) recaption(known, source, captions[index]);
      else made.append(picture(source, `${alt} ${index + 1}`, captions[index]));
    });
  };
  return made;
}

function recaption(figure, source, caption) {
  figure.querySelector("img").src = source;
  const shown = figure.querySelector("figcaption");
  if (shown && caption) shown.textContent = caption;
  else if (caption) figure.append(el("figcaption", {}, caption));
  else shown?.remove();
}

/** What to see where there is nothing yet. */
export function empty(text, ...more) {
  return el("div", { className: "state" }, el("p", {}, text), ...more);
}

/** The state of a job: waiting, progress with the time left and a stop button, or an error in one sentence. */
export class JobStatus {
  constructor() {
    this.current = null;
    this.bar = el("progress", { max: 1, value: 0, "aria-label": "Progress" });
    this.text = el("span", { role: "status", tabIndex: -1 });
    this.stop = button("Stop", () => this.current?.abort(), { className: "quiet" });
    this.node = el("div", { className: "job", hidden: true }, this.bar, this.text, this.stop);
  }

  /** Run a job, and stop the one before. Returns its last event; null if it has failed or was stopped. */
  async start(name, values, onEvent = () => {}) {
    this.current?.abort();
    const mine = this.current = new AbortController();
    this.show("waiting", "Starting …");
    try {
      const last = await run(name, values, (event) => mine === this.current && this.follow(event, onEvent), mine.signal);
      if (mine !== this.current) return null;
      this.say(`Done in ${seconds(last.seconds)}.`);
      return last;
    } catch (error) {
      if (mine !== this.current) return null;
      if (error.name === "AbortError") this.say("Stopped.");
      else this.show("failed", error.message);
      return null;
    } finally {
      if (mine === this.current) this.current = null;
    }
  }

  follow(event, onEvent) {
    if (event.state === "waiting") return this.show("waiting", waiting(event.ahead));
    this.show("running", event.left_s === null ? "Starting …" : left(event.left_s), event.done / event.total);
    onEvent(event);
  }

  /** Stop the job, and show nothing: what it was for is gone. */
  clear() {
    this.current?.abort();
    this.current = null;
    this.show("idle", "");
  }

  fail(error) {
    this.clear();
    this.show("failed", error.message);
  }

  /** Show what has come of a job that is done. */
  say(text) {
    this.show("done", text);
  }

  show(state, message, part = null) {
    this.node.hidden = state === "idle";
    this.node.dataset.state = state;
    this.text.ariaLive = state === "running" ? "off" : "polite"; // the bar tells the progress
    this.text.textContent = message;
    const runs = state === "waiting" || state === "running";
    if (!runs && document.activeElement === this.stop) this.text.focus();
    this.bar.hidden = this.stop.hidden = !runs;
    if (part === null) this.bar.removeAttribute("value");
    else this.bar.value = part;
  }
}

function waiting(ahead) {
  return ahead === 1 ? "One job is before this one …" : `${ahead} jobs are before this one …`;
}

function left(value) {
  return value < 1 ? "Less than a second left" : `About ${seconds(value)} left`;
}

function seconds(value) {
  return value < 10 ? `${value.toFixed(1)} s` : value < 90 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`;
}
