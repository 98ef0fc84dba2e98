// Take a forecast away: pictures, tables, files, and one page that opens anywhere.

import { toCsv } from "./numbers.js";

export function save(name, content, type) {
  const link = document.createElement("a");
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

export async function savePicture(compare) {
  const picture = compare.toPicture();
  const blob = await new Promise((resolve) => picture.toBlob(resolve, "image/png"));
  save(`${compare.view.header.subject}_forecast.png`, blob);
}

export function saveTable(view) {
  save(`${view.header.subject}_forecast.csv`, toCsv(view), "text/csv");
}

/** Save a file that the service answers with, under the name that it gives. */
export async function saveAnswer(api, path, fallback, options) {
  const response = await api.send(path, options);
  const name = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1];
  save(name ?? fallback, await response.blob());
}

/** Return the view that a saved page holds, null on the service's own page. */
export async function embeddedView() {
  if (typeof globalThis.EMBEDDED_VIEW !== "string") return null;
  const gz = Uint8Array.from(atob(globalThis.EMBEDDED_VIEW), (character) => character.charCodeAt(0));
  return new Uint8Array(await new Response(new Blob([gz]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}
