// Files of the person: read to send them, and saved.

import { size } from "./text.js";
import { el } from "./widgets.js";

/** The contents of files as data URIs; throws if they are larger than the server takes at once. */
export function dataUris(files, largest) {
  const bytes = files.reduce((sum, one) => sum + one.size, 0);
  const named = files.length === 1 ? `${files[0].name} has` : "These files have";
  if (bytes > largest) return Promise.reject(new Error(`${named} ${size(bytes)}: use at most ${size(largest)}.`));
  return Promise.all(files.map(dataUri));
}

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

/** A loaded image element of a data URI. */
export async function loaded(uri) {
  const image = el("img", { src: uri });
  await image.decode();
  return image;
}

/** A canvas with the pixels of a loaded image. */
export function canvasOf(image) {
  const canvas = el("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(image, 0, 0);
  return canvas;
}

/** Save a canvas as PNG. */
export function savePng(canvas, name) {
  canvas.toBlob((blob) => {
    const href = URL.createObjectURL(blob);
    el("a", { href, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
  }, "image/png");
}
