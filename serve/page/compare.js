// The comparison: one tile a treatment, with slice, zoom, window, threshold and colours in common.

import { OUTLINES } from "./colours.js";
import { Geometry, ON_PROCESSOR, Painter } from "./draw.js";
import { activeProbability, calibrationText, expectedLesions, decimal, fillTable, percent, summarySentence } from "./numbers.js";
import { defaultRange, slicesByDifference, toWorld } from "./view.js";

const $ = (id) => document.getElementById(id);
const SLIDER_POWER = 3; // most probabilities are small: the slider moves finely near zero

export class Compare {
  /** `change(patch)` changes the state; `loadSample(arm, index)` brings one sample. */
  constructor({ change, loadSample }) {
    this.change = change;
    this.loadSample = loadSample;
    this.view = null;
    this.cursor = null;
    this.automatic = {}; // values that the page chose itself
    this.tiles = new Map();
    this.frame = 0;
    this.observer = new ResizeObserver(() => this.schedule());
    this.observer.observe($("tiles"));
    this.#listen();
  }

  /** Show a view. Returns what the state lacks: slice, threshold, scale and session. */
  show(view, state) {
    const same = this.view?.header.forecast === view.header.forecast;
    if (same) view.samples = this.view.samples;
    else {
      this.cursor = null;
      this.automatic = {};
    }
    this.view = view;
    this.painter = new Painter(view);
    this.order = slicesByDifference(view);
    this.maximum = Math.max(1e-4, ...[...view.probability.values()].map((map) => map.reduce((a, b) => Math.max(a, b), 0)));
    const outcome = view.header.layers.filter((layer) => layer.kind === "net2").map((layer) => layer.session);
    for (const layer of view.masks) layer.isOutcome = layer.kind === "net2" && !view.flair.has(layer.session) && layer.session === outcome[0];
    this.#buildTiles();
    this.#fillTexts();
    const defaults = { slice: this.order[0], ...defaultRange(view) };
    const patch = {};
    if (state.slice >= view.header.shape[0]) patch.slice = defaults.slice;
    for (const [name, value] of Object.entries(defaults)) {
      // More samples change the defaults; what a person has set stays.
      if (state[name] < 0 || state[name] === this.automatic[name]) patch[name] = this.automatic[name] = value;
    }
    if (!view.flair.has(state.session)) patch.session = view.flair.keys().next().value ?? "";
    if (state.arm && !view.arms.includes(state.arm)) patch.arm = "";
    return patch;
  }

  /** Render the state in the next frame. */
  update(state) {
    this.state = state;
    this.schedule();
  }

  schedule() {
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.render(); });
  }

  render() {
    const { view, state } = this;
    if (!view || !state || $("compare").hidden) return;
    $("tiles").classList.toggle("focused", state.arm !== "");
    for (const [arm, tile] of this.tiles) tile.figure.hidden = state.arm !== "" && state.arm !== arm;
    const shown = [...this.tiles].filter(([, tile]) => !tile.figure.hidden);
    const width = shown[0][1].canvas.clientWidth * (globalThis.devicePixelRatio || 1);
    if (!width) return;
    this.geometry = new Geometry(view, state, width);
    for (const [arm, tile] of shown) {
      if (state.sample >= 0 && !view.samples.has(`${arm}/${state.sample}`)) this.#fetchSample(arm, state.sample);
      this.painter.paint(tile.canvas, arm, state, this.geometry, this.cursor);
    }
    this.#syncControls();
    this.#labelColourBar();
    // Descriptions are for people who do not see the pictures; they can wait for a pause.
    clearTimeout(this.describing);
    this.describing = setTimeout(() => this.#describeAll(), 100);
  }

  #fetchSample(arm, index) {
    const { view } = this;
    const kept = view.numbers.get(arm).kept_samples;
    if (index >= kept) return;
    const key = `${arm}/${index}`;
    view.samples.set(key, null);
    this.loadSample(view, arm, index).then(
      (voxels) => { view.samples.set(key, voxels); this.schedule(); },
      () => view.samples.delete(key),
    );
  }

  #describeAll() {
    for (const [arm, tile] of this.tiles) {
      if (!tile.figure.hidden) tile.canvas.setAttribute("aria-label", this.#describe(arm));
    }
  }

  #describe(arm) {
    const { view, state } = this;
    const slice = `${arm}, slice ${state.slice + 1} of ${view.header.shape[0]}`;
    const map = view.probability.get(arm);
    if (!map) return `${slice}, no samples yet`;
    const [, h, w] = view.header.shape;
    let best = state.slice * h * w;
    for (let i = best; i < (state.slice + 1) * h * w; i++) if (map[i] > map[best]) best = i;
    if (!map[best]) return `${slice}, no probability of new lesions here`;
    const within = best - state.slice * h * w;
    return `${slice}, highest probability ${percent(map[best])} at ${this.#place([state.slice, Math.floor(within / w), within % w])}`;
  }

  #place(voxel) {
    const letters = [["L", "R"], ["P", "A"], ["I", "S"]];
    return toWorld(this.view, voxel).map((mm, k) => `${letters[k][mm < 0 ? 0 : 1]} ${Math.abs(mm).toFixed(0)}`).join(", ") + " mm";
  }

  #buildTiles() {
    const { view } = this;
    const keep = [...this.tiles.keys()].join() === view.arms.join();
    if (!keep) {
      this.tiles.clear();
      $("tiles").replaceChildren(...view.arms.map((arm) => this.#tile(arm)));
    }
    for (const [name, tile] of this.tiles) {
      const arm = view.numbers.get(name);
      tile.figure.classList.toggle("received", arm.received);
      const role = [name === view.header.reference_arm ? "reference" : "", arm.received ? "received" : ""].filter(Boolean).join(", ");
      tile.name.textContent = name;
      tile.role.textContent = role;
      const p = activeProbability(arm);
      tile.text.textContent = p === null ? "waiting for samples" : `P(active) ${percent(p)}, ${decimal(expectedLesions(arm))} lesions`;
    }
  }

  #tile(arm) {
    const figure = document.createElement("figure");
    figure.className = "tile";
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.dataset.arm = arm;
    const caption = document.createElement("figcaption");
    const name = document.createElement("button");
    name.type = "button";
    name.className = "arm";
    name.title = "Enlarge this treatment, or show all again";
    name.addEventListener("click", () => this.change({ arm: this.state.arm === arm ? "" : arm }));
    const [role, text] = [document.createElement("span"), document.createElement("span")];
    role.className = "role";
    caption.append(name, text, role);
    figure.append(caption, canvas);
    this.tiles.set(arm, { figure, canvas, name, role, text });
    this.#listenToTile(canvas);
    return figure;
  }

  #listenToTile(canvas) {
    let drag = null;
    const pixel = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
    };
    canvas.addEventListener("pointerdown", (event) => {
      drag = { at: pixel(event), geometry: this.geometry, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = pixel(event);
      if (!drag) return;
      const [dx, dy] = [x - drag.at[0], y - drag.at[1]];
      if (Math.hypot(dx, dy) > 4) drag.moved = true;
      if (drag.moved && this.state.zoom > 1) this.change(clampCentre(drag.geometry.dragged(dx, dy), this.state.zoom));
    });
    canvas.addEventListener("pointerup", (event) => {
      if (drag && !drag.moved) this.#setCursor(this.geometry.voxelAt(...pixel(event)));
      drag = null;
    });
    canvas.addEventListener("pointercancel", () => { drag = null; });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return; // without Ctrl the wheel scrolls the page
      event.preventDefault();
      this.change({ zoom: Math.min(8, Math.max(1, this.state.zoom * (event.deltaY < 0 ? 1.2 : 1 / 1.2))) });
    }, { passive: false });
  }

  #setCursor(place) {
    this.cursor = place === null ? null : [this.state.slice, ...place];
    $("crosshair").textContent = this.cursor === null ? "" : this.crosshairText();
    this.schedule();
  }

  /** Return the probability under every arm at the crosshair. */
  crosshairText() {
    const { view, cursor } = this;
    const [, h, w] = view.header.shape;
    const i = (cursor[0] * h + cursor[1]) * w + cursor[2];
    const values = view.arms.filter((arm) => view.probability.has(arm)).map((arm) => `${arm} ${percent(view.probability.get(arm)[i])}`);
    return `At ${this.#place(cursor)}: ${values.join(" · ")}`;
  }

  #fillTexts() {
    const { view } = this;
    const { header } = view;
    $("title").textContent = `${header.subject}: ${header.target}`;
    $("sentence").textContent = summarySentence(view);
    $("typicality").textContent = header.typicality;
    $("severe").replaceChildren(...header.severe.map((text) => element("li", text)));
    $("severe").hidden = !header.severe.length;
    // The severe ones stand above.
    const lines = [...header.disclaimers, ...header.warnings.filter((text) => !header.severe.includes(text)), ...header.notes];
    $("warnings").replaceChildren(...lines.map((text) => element("li", text)));
    for (const name of document.querySelectorAll(".reference-name")) name.textContent = header.reference_arm;
    fillTable($("numbers"), view);
    const kinds = Object.keys(OUTLINES).filter((kind) => view.masks.some((layer) => layer.kind === kind && (kind !== "net2" || layer.isOutcome)));
    $("outlines").hidden = !kinds.length;
    $("outlines").replaceChildren(element("legend", "Outlines"), ...kinds.map((kind) => {
      const label = element("label", "");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.value = kind;
      box.addEventListener("change", () => {
        const others = this.state.outlines.filter((name) => name !== kind);
        this.change({ outlines: box.checked ? [...others, kind] : others });
      });
      label.append(box, ` ${OUTLINES[kind].label} `, swatch(OUTLINES[kind]));
      return label;
    }));
    const most = Math.max(0, ...header.arms.map((arm) => arm.kept_samples));
    $("sample").replaceChildren(new Option("all, as probability", -1), ...Array.from({ length: most }, (_, k) => new Option(`sample ${k + 1}`, k)));
    $("session").replaceChildren(...[...view.flair.keys()].map((session) => new Option(`FLAIR of ${session}`, session)));
    $("slice").max = header.shape[0] - 1;
    $("jump").hidden = view.arms.length < 2;
    $("jump-buttons").replaceChildren(...this.order.slice(0, 3).map((slice) => {
      const button = element("button", `slice ${slice + 1}`);
      button.type = "button";
      button.className = "plain";
      button.addEventListener("click", () => this.change({ slice }));
      return button;
    }));
    const facts = {
      Forecast: header.forecast, Bundle: header.bundle, "Samples of each treatment": header.samples, Seed: header.seed,
      "Images that the model saw": header.sessions.join(", "), "Treatment received": header.received_arm ?? "unknown",
      "Lesions observed later": header.observed_lesions ?? "not observed",
      "Calibrated on": calibrationText(header),
    };
    $("provenance").querySelector("dl").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [element("dt", name), element("dd", String(value))]));
  }

  #syncControls() {
    const { state, maximum, view } = this;
    setValue("slice", state.slice);
    setValue("threshold", toSlider(state.threshold / maximum));
    setValue("scale", toSlider(state.scale / maximum));
    setValue("window-low", state.low);
    setValue("window-high", state.high);
    setValue("zoom", state.zoom);
    setValue("sample", state.sample);
    setValue("session", state.session);
    setValue("convention", state.convention);
    setOutput("slice", `${state.slice + 1} of ${view.header.shape[0]}`);
    setOutput("threshold", precise(state.threshold));
    setOutput("scale", precise(state.scale));
    setText($("zoom-text"), `${state.zoom.toFixed(1)} ×`);
    for (const radio of document.getElementsByName("mode")) set(radio, "checked", radio.value === state.mode);
    for (const box of $("outlines").querySelectorAll("input")) set(box, "checked", state.outlines.includes(box.value));
  }

  #labelColourBar() {
    const { state, view } = this;
    const { threshold, scale } = state;
    const difference = state.mode === "difference";
    this.#drawColourBar(difference);
    const ticks = difference ? [-scale, -scale / 2, 0, scale / 2, scale] : [0, 0.25, 0.5, 0.75, 1].map((share) => threshold + share * (scale - threshold));
    const labels = $("colour-ticks").children;
    ticks.forEach((tick, k) => setText(labels[k], (difference && tick > 0 ? "+" : "") + precise(tick)));
    $("colour-bar").hidden = state.mode === "outline" || state.sample >= 0;
    const what = `probability of ${view.header.target}`;
    setText($("colour-bar").querySelector("figcaption"), difference
      ? `Difference to ${view.header.reference_arm} in the ${what}; smaller differences than the threshold are left out`
      : `${view.header.map === "closed form" ? "Computed without sampling" : "Share of samples with a lesion at the voxel"}: ${what}`);
  }

  #drawColourBar(difference) {
    if (this.barOfDifference === difference) return; // threshold and scale change the labels alone
    this.barOfDifference = difference;
    const canvas = $("colour-bar").querySelector("canvas");
    const context = canvas.getContext("2d", ON_PROCESSOR);
    const { colours } = this.painter.palette;
    for (let x = 0; x < canvas.width; x++) {
      const [r, g, b] = colours[Math.floor((256 * x) / canvas.width)];
      context.fillStyle = `rgb(${r} ${g} ${b})`;
      context.fillRect(x, 0, 1, canvas.height);
    }
  }

  #listen() {
    const number = (id, name, convert = (value) => value) =>
      $(id).addEventListener("input", () => this.change({ [name]: convert(Number($(id).value)) }));
    number("slice", "slice");
    number("threshold", "threshold", (value) => this.maximum * value ** SLIDER_POWER);
    number("scale", "scale", (value) => Math.max(this.maximum * value ** SLIDER_POWER, 1e-6));
    number("window-low", "low", (value) => Math.min(value, this.state.high - 1));
    number("window-high", "high", (value) => Math.max(value, this.state.low + 1));
    number("zoom", "zoom");
    number("sample", "sample");
    for (const name of ["session", "convention"]) $(name).addEventListener("change", () => this.change({ [name]: $(name).value }));
    for (const radio of document.getElementsByName("mode")) radio.addEventListener("change", () => this.change({ mode: radio.value }));
    document.addEventListener("keydown", (event) => this.#onKey(event));
  }

  #onKey(event) {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "radio" && event.target.type !== "checkbox";
    if (!this.view || !this.state || typing || event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
    const { state, view } = this;
    const last = view.header.shape[0] - 1;
    const slice = (step) => ({ slice: Math.min(last, Math.max(0, state.slice + step)) });
    const zoom = (factor) => ({ zoom: Math.min(8, Math.max(1, state.zoom * factor)) });
    const factor = (step) => ({ threshold: Math.min(this.maximum, Math.max(state.threshold, 1e-5) * step) });
    const actions = {
      ArrowUp: () => slice(1), PageUp: () => slice(1), ArrowDown: () => slice(-1), PageDown: () => slice(-1),
      "[": () => factor(1 / 1.25), "]": () => factor(1.25), d: () => ({ mode: "difference" }), p: () => ({ mode: "probability" }),
      o: () => ({ mode: "outline" }), "+": () => zoom(1.25), "-": () => zoom(1 / 1.25), Escape: () => ({ arm: "" }),
    };
    const digit = Number(event.key);
    const action = actions[event.key] ?? (digit >= 1 && digit <= view.arms.length ? () => ({ arm: view.arms[digit - 1] }) : null);
    if (!action) return;
    event.preventDefault();
    this.change(action());
  }

  /** Return a canvas of all tiles shown with caption and warnings, for saving as a picture. */
  toPicture() {
    const { view, state } = this;
    const shown = [...this.tiles].filter(([, tile]) => !tile.figure.hidden);
    const [{ width, height }] = shown.map(([, tile]) => tile.canvas);
    const across = Math.min(3, shown.length);
    const unit = Math.max(1, width / 300);
    const bar = 38 * unit;
    const lines = [];
    const out = document.createElement("canvas");
    out.width = across * width;
    const context = out.getContext("2d");
    context.font = `${12 * unit}px system-ui, sans-serif`;
    const what = { probability: "probability", difference: `difference to ${view.header.reference_arm}`, outline: "outline at the threshold" }[state.mode];
    const caption = [
      `${view.header.subject}, ${view.header.target}; slice ${state.slice + 1} of ${view.header.shape[0]}; ${what}, threshold ${precise(state.threshold)}, scale to ${precise(state.scale)}; ${state.convention}; bundle ${view.header.bundle.slice(0, 12)}; forecast ${view.header.forecast}.`,
      summarySentence(view), ...view.header.severe, view.header.typicality, ...view.header.disclaimers,
      ...view.header.warnings.filter((text) => !view.header.severe.includes(text)), ...view.header.notes,
    ];
    for (const text of caption) lines.push(...wrap(context, text, out.width - 20 * unit));
    const rows = Math.ceil(shown.length / across);
    out.height = rows * (height + bar) + (lines.length + 1) * 16 * unit;
    context.fillStyle = "#000";
    context.fillRect(0, 0, out.width, out.height);
    shown.forEach(([, tile], k) => {
      const [x, y] = [(k % across) * width, Math.floor(k / across) * (height + bar)];
      context.drawImage(tile.canvas, x, y + bar);
      context.fillStyle = "#fff";
      context.font = `700 ${13 * unit}px system-ui, sans-serif`;
      context.fillText(`${tile.name.textContent}${tile.role.textContent ? ` (${tile.role.textContent})` : ""}`, x + 8 * unit, y + 16 * unit);
      context.font = `${12 * unit}px system-ui, sans-serif`;
      context.fillText(tile.text.textContent, x + 8 * unit, y + 32 * unit);
    });
    context.font = `${12 * unit}px system-ui, sans-serif`;
    lines.forEach((text, k) => context.fillText(text, 10 * unit, rows * (height + bar) + (k + 1) * 16 * unit));
    return out;
  }
}

function clampCentre({ x, y }, zoom) {
  const margin = 0.5 / zoom;
  const clamp = (value) => Math.min(Math.max(value, margin), 1 - margin);
  return { x: clamp(x), y: clamp(y) };
}

function wrap(context, text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (context.measureText(longer).width > width && lines.at(-1)) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

function toSlider(share) {
  return Math.max(share, 0) ** (1 / SLIDER_POWER);
}

function precise(value) {
  const p = 100 * value;
  const size = Math.abs(p);
  return `${p.toFixed(size === 0 || size >= 10 ? 0 : size >= 1 ? 1 : 2)} %`;
}

/** Set a property that differs. A browser may lay out and draw again for an equal one. */
function set(node, name, value) {
  if (node[name] !== value) node[name] = value;
}

function setText(node, text) {
  set(node, "textContent", text);
}

/** Show the value of a slider as text, to the eye and to a screen reader. */
function setOutput(id, text) {
  setText($(`${id}-text`), text);
  if ($(id).getAttribute("aria-valuetext") !== text) $(id).setAttribute("aria-valuetext", text);
}

function setValue(id, value) {
  const control = $(id);
  if (document.activeElement !== control || control.tagName === "SELECT") set(control, "value", String(value));
}

export function element(name, text) {
  const node = document.createElement(name);
  node.textContent = text;
  return node;
}

function swatch({ colour }) {
  const canvas = document.createElement("canvas");
  canvas.width = 14;
  canvas.height = 10;
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d");
  context.strokeStyle = colour;
  context.lineWidth = 3;
  context.strokeRect(2, 2, 10, 6);
  return canvas;
}
