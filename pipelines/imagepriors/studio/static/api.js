// Requests to the server. Errors have a message for the person in `message`.

import { sentence } from "./text.js";

/** What the page shows: priors, tokenizers and shards. */
export async function contents() {
  return read(await send("api/contents", {}));
}

/** The answer to a request that does not wait in the queue. */
export async function ask(name, values, signal) {
  return read(await send(`api/${name}`, post(values, signal)));
}

/**
 * Run a job: calls onEvent with its events while it waits and runs, and returns the last one.
 * Aborting the signal stops the job.
 */
export async function run(name, values, onEvent, signal) {
  const response = await send(`api/jobs/${name}`, post(values, signal));
  if (!response.ok) return read(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reached(reader.read());
    if (done) throw new Error("The studio has ended: start it again in the terminal.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const event of lines.map((line) => JSON.parse(line))) {
      if (event.state === "failed") throw new Error(sentence(event.error));
      if (event.state === "done") return event;
      onEvent(event);
    }
  }
}

function send(path, options) {
  return reached(fetch(path, options));
}

/** What a part of a request gives; without a connection, an error that says what to do. */
async function reached(part) {
  try {
    return await part;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The studio does not answer: start it again in the terminal.");
  }
}

async function read(response) {
  if (response.ok) return reached(response.json());
  const values = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  throw new Error(sentence(values.error));
}

function post(values, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values), signal };
}
