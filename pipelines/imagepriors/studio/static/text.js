// Texts: numbers, sizes and sentences for a person.

/** A text that begins with a capital. */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** A message of the server as a sentence; a name at its beginning stays as it is. */
export function sentence(text) {
  const begun = /^[a-z]+[ ,:]/.test(text) ? capital(text) : text;
  return /[.?!]$/.test(begun) ? begun : `${begun}.`;
}

/** A number with thousands separated. */
export function count(value) {
  return value.toLocaleString("en");
}

/** A size in KiB or MiB. */
export function size(bytes) {
  return bytes < 2 ** 20 ? `${count(Math.ceil(bytes / 2 ** 10))}\u00a0KiB` : `${(bytes / 2 ** 20).toFixed(1)}\u00a0MiB`;
}
