// The binary view of a forecast (serve/API.md): a JSON header, then arrays [s, h, w] in RAS+ order.

const MAGIC = "LCVIEW";
const VERSION = 1;

/** Decode a view. Throws an Error for another format. */
export function decodeView(bytes) {
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const magic = String.fromCharCode(...bytes.subarray(0, 6));
  if (magic !== MAGIC || data.getUint16(6, true) !== VERSION) {
    throw new Error("The service sent a view of another version. Reload the page.");
  }
  const length = data.getUint32(8, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(12, 12 + length)));
  const body = bytes.subarray(12 + length);
  const [s, h, w] = header.shape;
  const view = { header, size: s * h * w, flair: new Map(), masks: [], probability: new Map() };
  for (const layer of header.layers) {
    const content = body.subarray(layer.offset, layer.offset + layer.length);
    if (layer.kind === "flair") view.flair.set(layer.session, content);
    else if (layer.kind === "probability") view.probability.set(layer.arm, decodeHalf(content));
    else view.masks.push({ ...layer, voxels: unpackBits(content, view.size), paths: new Map() });
  }
  view.arms = [header.reference_arm, ...header.arms.map((arm) => arm.name).filter((name) => name !== header.reference_arm)];
  view.numbers = new Map(header.arms.map((arm) => [arm.name, arm]));
  view.samples = new Map();
  return view;
}

let halfTable = null;

/** Return float16 numbers as float32, by a table of all 65,536 of them. */
function decodeHalf(bytes) {
  if (halfTable === null) {
    halfTable = new Float32Array(65536);
    for (let bits = 0; bits < 65536; bits++) {
      const sign = bits & 0x8000 ? -1 : 1;
      const exponent = (bits >> 10) & 31;
      const fraction = bits & 1023;
      if (exponent === 0) halfTable[bits] = sign * fraction * 2 ** -24;
      else if (exponent === 31) halfTable[bits] = fraction ? NaN : sign * Infinity;
      else halfTable[bits] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
    }
  }
  const out = new Float32Array(bytes.length / 2);
  for (let i = 0; i < out.length; i++) out[i] = halfTable[bytes[2 * i] | (bytes[2 * i + 1] << 8)];
  return out;
}

/** Return bits as one byte a voxel, first voxel in the highest bit. */
export function unpackBits(bytes, size) {
  const out = new Uint8Array(size);
  for (let i = 0; i < size; i++) out[i] = (bytes[i >> 3] >> (7 - (i & 7))) & 1;
  return out;
}

/** Return the threshold and the top of the colour scale at the start, from the map's quantiles. */
export function defaultRange(view) {
  // The values were float16, so the low 13 bits of each float32 are zero, and its bits grow with it:
  // counting by the other bits gives exact quantiles without sorting millions of numbers.
  const counts = new Uint32Array(1 << 18);
  let total = 0;
  for (const map of view.probability.values()) {
    const bits = new Uint32Array(map.buffer, map.byteOffset, map.length);
    for (let i = 0; i < bits.length; i++) {
      if (bits[i] === 0) continue;
      counts[bits[i] >>> 13]++;
      total++;
    }
  }
  if (!total) return { threshold: 0.01, scale: 1 };
  const quantile = (q) => {
    let left = Math.floor(q * (total - 1));
    let code = 0;
    while (left >= counts[code]) left -= counts[code++];
    return new Float32Array(Uint32Array.of(code << 13).buffer)[0];
  };
  const scale = Math.max(quantile(0.995), 1e-4);
  return { threshold: Math.min(quantile(0.5), scale / 2), scale };
}

/** Return the slices by how much the arms differ from the reference, most first. */
export function slicesByDifference(view) {
  const [slices, h, w] = view.header.shape;
  const reference = view.probability.get(view.header.reference_arm);
  const scores = [];
  for (let s = 0; s < slices; s++) {
    let difference = 0;
    let mass = 0;
    for (const map of view.probability.values()) {
      for (let i = s * h * w; i < (s + 1) * h * w; i++) {
        mass += map[i];
        if (reference) difference += Math.abs(map[i] - reference[i]);
      }
    }
    scores.push({ slice: s, difference, mass, middle: -Math.abs(s - (slices - 1) / 2) });
  }
  scores.sort((a, b) => b.difference - a.difference || b.mass - a.mass || b.middle - a.middle);
  return scores.map((score) => score.slice);
}

/** Return the position of a voxel in mm, RAS+. */
export function toWorld(view, [s, h, w]) {
  return view.header.affine.slice(0, 3).map((row) => row[0] * w + row[1] * h + row[2] * s + row[3]);
}
