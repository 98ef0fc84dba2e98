// Draw one slice of one treatment on a canvas. Arrays are [s, h, w]: h runs to anterior, w to the
// patient's right. One transform flips pixels, outlines and letters alike.

import { OUTLINES, SAMPLE_COLOUR, blendTable, diverging, greyTable, sequential } from "./colours.js";

const OPACITY = 0.8;
// Pixels are computed on the processor. A canvas on a graphics card would copy them back and forth,
// and hospital desktops often have none.
export const ON_PROCESSOR = { willReadFrequently: true };

/** Return the sides of the picture: the sign of the horizontal axis and the letters that follow. */
export function sides(convention) {
  const sign = convention === "neurological" ? 1 : -1;
  return { sign, left: sign < 0 ? "R" : "L", right: sign < 0 ? "L" : "R", top: "A", bottom: "P" };
}

/** Map voxels of a slice to pixels of a canvas and back. */
export class Geometry {
  constructor(view, state, width) {
    const [, h, w] = view.header.shape;
    const [, heightMm, widthMm] = view.header.spacing_mm;
    this.columns = w;
    this.rows = h;
    this.width = Math.round(width);
    this.height = Math.round((width * h * heightMm) / (w * widthMm));
    this.kx = (this.width / w) * state.zoom;
    this.ky = (this.height / h) * state.zoom;
    const margin = 0.5 / state.zoom;
    this.x = Math.min(Math.max(state.x, margin), 1 - margin) * w;
    this.y = Math.min(Math.max(state.y, margin), 1 - margin) * h;
    this.sign = sides(state.convention).sign;
  }

  /** Return the canvas transform from voxel coordinates (w, h) to pixels. */
  matrix() {
    return new DOMMatrix([
      this.sign * this.kx, 0, 0, -this.ky,
      this.width / 2 - this.sign * this.x * this.kx, this.height / 2 + this.y * this.ky,
    ]);
  }

  /** Return the voxel (h, w) at a pixel, null outside the slice. */
  voxelAt(px, py) {
    const w = Math.floor(this.x + (this.sign * (px - this.width / 2)) / this.kx);
    const h = Math.floor(this.y - (py - this.height / 2) / this.ky);
    return w >= 0 && h >= 0 && w < this.columns && h < this.rows ? [h, w] : null;
  }

  /** Return the centre of the picture, as shares, after a drag by pixels. */
  dragged(dx, dy) {
    return {
      x: (this.x - (this.sign * dx) / this.kx) / this.columns,
      y: (this.y + dy / this.ky) / this.rows,
    };
  }
}

/** Lookup tables of colours. They are made anew when window or mode change. */
export class Palette {
  #key = "";

  update(state) {
    const key = [state.mode === "difference", state.low, state.high].join();
    if (key === this.#key) return;
    this.#key = key;
    this.colours = state.mode === "difference" ? diverging() : sequential();
    this.blend = blendTable(this.colours, OPACITY, state.low, state.high);
    this.grey = greyTable(state.low, state.high);
    this.sample = blendTable(Array(256).fill(SAMPLE_COLOUR), OPACITY, state.low, state.high);
  }
}

/** Write FLAIR with a map of probabilities from the threshold on. All arrays are of one slice. */
function fillProbability(words, flair, map, { threshold, scale }, palette) {
  const { grey, blend } = palette;
  const factor = 255 / Math.max(scale - threshold, 1e-9);
  for (let i = 0; i < words.length; i++) {
    const p = map[i];
    if (p < threshold || p <= 0) words[i] = grey[flair[i]];
    else words[i] = blend[(flair[i] << 8) | Math.min(255, (p - threshold) * factor + 0.5)];
  }
}

/** Write FLAIR with the difference of two maps, where it is at least the threshold. */
function fillDifference(words, flair, map, reference, { threshold, scale }, palette) {
  const { grey, blend } = palette;
  const factor = 127.5 / Math.max(scale, 1e-9);
  for (let i = 0; i < words.length; i++) {
    const d = map[i] - reference[i];
    if (d === 0 || (d < threshold && d > -threshold)) words[i] = grey[flair[i]];
    else words[i] = blend[(flair[i] << 8) | Math.min(Math.max(127.5 + d * factor + 0.5, 0), 255)];
  }
}

/** Write FLAIR with a mask in one colour; no mask leaves the FLAIR alone. */
function fillMask(words, flair, mask, { grey, sample }) {
  for (let i = 0; i < words.length; i++) {
    words[i] = mask !== null && mask[i] ? sample[flair[i] << 8] : grey[flair[i]];
  }
}

/** Draw a tile: FLAIR, colours, outlines, crosshair, letters. */
export class Painter {
  constructor(view) {
    this.view = view;
    const [, h, w] = view.header.shape;
    this.pixels = new ImageData(w, h);
    this.words = new Uint32Array(this.pixels.data.buffer);
    this.inside = new Uint8Array(w * h);
    this.black = new Uint8Array(w * h);
    this.buffer = new OffscreenCanvas(w, h);
    this.context = this.buffer.getContext("2d", ON_PROCESSOR);
    this.palette = new Palette();
  }

  paint(canvas, arm, state, geometry, cursor) {
    const { view } = this;
    if (canvas.width !== geometry.width || canvas.height !== geometry.height) {
      canvas.width = geometry.width;
      canvas.height = geometry.height;
    }
    this.palette.update(state);
    this.#fill(arm, state);
    const context = canvas.getContext("2d", ON_PROCESSOR);
    context.resetTransform();
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = false;
    const matrix = geometry.matrix();
    context.setTransform(matrix);
    context.drawImage(this.buffer, 0, 0);
    context.resetTransform();
    const ratio = globalThis.devicePixelRatio || 1;
    if (state.mode === "outline" && state.sample < 0) {
      const inside = this.#above(arm, state);
      stroke(context, edges(inside, this.pixels.width), matrix, "#ff8c1a", [], 1.6 * ratio);
    }
    for (const layer of view.masks) {
      if (!isShown(layer, arm, state)) continue;
      const { colour, dash } = OUTLINES[layer.kind];
      stroke(context, this.#path(layer, state.slice), matrix, colour, dash.map((x) => x * ratio), 1.4 * ratio);
    }
    if (cursor && cursor[0] === state.slice) drawCursor(context, cursor, matrix, ratio);
    drawLetters(context, state, ratio);
  }

  #fill(arm, state) {
    const { view, words, palette } = this;
    const ofSlice = (array) => array?.subarray(state.slice * words.length, (state.slice + 1) * words.length) ?? null;
    const flair = ofSlice(view.flair.get(state.session)) ?? this.black;
    const map = ofSlice(view.probability.get(arm));
    if (state.sample >= 0) fillMask(words, flair, ofSlice(view.samples.get(`${arm}/${state.sample}`)), palette);
    else if (map === null || state.mode === "outline") fillMask(words, flair, null, palette);
    else if (state.mode === "difference") {
      const reference = ofSlice(view.probability.get(view.header.reference_arm)) ?? map;
      fillDifference(words, flair, map, reference, state, palette);
    } else fillProbability(words, flair, map, state, palette);
    this.context.putImageData(this.pixels, 0, 0);
  }

  #above(arm, state) {
    const { view, inside } = this;
    const map = view.probability.get(arm);
    const start = state.slice * inside.length;
    for (let i = 0; i < inside.length; i++) inside[i] = map && map[start + i] >= state.threshold && map[start + i] > 0 ? 1 : 0;
    return inside;
  }

  #path(layer, slice) {
    if (!layer.paths.has(slice)) {
      const count = this.words.length;
      layer.paths.set(slice, edges(layer.voxels.subarray(slice * count, (slice + 1) * count), this.pixels.width));
    }
    return layer.paths.get(slice);
  }
}

/** Return whether an outline belongs on the tile of an arm. */
export function isShown(layer, arm, state) {
  if (!state.outlines.includes(layer.kind)) return false;
  if (layer.kind === "truth") return layer.arm === arm;
  if (layer.kind === "net2") return layer.isOutcome;
  return layer.session === state.session;
}

/** Return the boundary between voxels that are set and not set, in voxel coordinates. */
function edges(voxels, width) {
  const path = new Path2D();
  const height = voxels.length / width;
  for (let h = 0; h < height; h++) {
    for (let w = 0; w < width; w++) {
      const i = h * width + w;
      if (!voxels[i]) continue;
      if (w === 0 || !voxels[i - 1]) line(path, w, h, w, h + 1);
      if (w === width - 1 || !voxels[i + 1]) line(path, w + 1, h, w + 1, h + 1);
      if (h === 0 || !voxels[i - width]) line(path, w, h, w + 1, h);
      if (h === height - 1 || !voxels[i + width]) line(path, w, h + 1, w + 1, h + 1);
    }
  }
  return path;
}

function line(path, x0, y0, x1, y1) {
  path.moveTo(x0, y0);
  path.lineTo(x1, y1);
}

/** Stroke a path of voxel coordinates with a line that has the same width at every zoom. */
function stroke(context, path, matrix, colour, dash, width) {
  const pixels = new Path2D();
  pixels.addPath(path, matrix);
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.lineCap = "square";
  context.setLineDash(dash);
  context.stroke(pixels);
  context.setLineDash([]);
}

function drawCursor(context, [, h, w], matrix, ratio) {
  const { x, y } = matrix.transformPoint(new DOMPoint(w + 0.5, h + 0.5));
  context.strokeStyle = "rgb(255 255 255 / 70%)";
  context.lineWidth = ratio;
  context.beginPath();
  context.moveTo(0, y);
  context.lineTo(x - 6 * ratio, y);
  context.moveTo(x + 6 * ratio, y);
  context.lineTo(context.canvas.width, y);
  context.moveTo(x, 0);
  context.lineTo(x, y - 6 * ratio);
  context.moveTo(x, y + 6 * ratio);
  context.lineTo(x, context.canvas.height);
  context.stroke();
}

function drawLetters(context, state, ratio) {
  const { left, right, top, bottom } = sides(state.convention);
  const { width, height } = context.canvas;
  const margin = 9 * ratio;
  context.font = `700 ${13 * ratio}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineWidth = 3 * ratio;
  context.strokeStyle = "#000";
  context.fillStyle = "#fff";
  for (const [letter, x, y] of [
    [left, margin, height / 2], [right, width - margin, height / 2],
    [top, width / 2, margin], [bottom, width / 2, height - margin],
  ]) {
    context.strokeText(letter, x, y);
    context.fillText(letter, x, y);
  }
}
