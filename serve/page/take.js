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

/** Save one HTML file with the page, its scripts and the view. It needs no service and no network. */
export async function saveHtml(api, view, bytes, hash) {
  const [html, css, main] = await Promise.all(["./", "page/page.css", "page/main.js"].map(async (path) => (await api.send(path)).text()));
  const script = await bundle(api, "page/main.js", main, new Set());
  const gz = new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"))).arrayBuffer());
  const policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:";
  const page = html
    .replace('<link rel="stylesheet" href="page/page.css">', () => `<meta http-equiv="Content-Security-Policy" content="${policy}">\n<style>\n${css}</style>`)
    .replace('<script type="module" src="page/main.js"></script>', () =>
      `<script>globalThis.EMBEDDED_VIEW = ${JSON.stringify(base64(gz))}; globalThis.EMBEDDED_HASH = ${JSON.stringify(hash)};</script>\n<script type="module">\n${script.replaceAll("</script", "<\\/script")}</script>`);
  save(`${view.header.subject}_forecast.html`, page, "text/html");
}

/** Return a module after the modules that it imports, as one script. Names are unique across them. */
async function bundle(api, path, source, done) {
  done.add(path);
  let before = "";
  for (const [, name] of source.matchAll(/^import .* from "\.\/([\w-]+\.js)";$/gm)) {
    const imported = `page/${name}`;
    if (!done.has(imported)) before += await bundle(api, imported, await (await api.send(imported)).text(), done);
  }
  // Each module keeps its own names in a block; what it exports becomes global.
  const body = source.replace(/^import .*;$/gm, "");
  const exported = [...body.matchAll(/^export (?:async )?(?:const|function\*?|class) (\w+)/gm)].map(([, name]) => name);
  const inside = body.replace(/^export /gm, "");
  return `${before}{\n${inside}\nObject.assign(globalThis, { ${exported.join(", ")} });\n}\n`;
}

function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

/** Return the view that a saved page holds, null on the service's own page. */
export async function embeddedView() {
  if (typeof globalThis.EMBEDDED_VIEW !== "string") return null;
  const gz = Uint8Array.from(atob(globalThis.EMBEDDED_VIEW), (character) => character.charCodeAt(0));
  return new Uint8Array(await new Response(new Blob([gz]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}
