// The state of the page: one plain object, kept in the URL's hash so that a link reopens the view.

export const INITIAL = Object.freeze({
  forecast: "",
  slice: -1, // -1: where the treatments differ most
  mode: "probability",
  threshold: -1, // -1: from the quantiles of the map
  scale: -1,
  low: 0,
  high: 255,
  zoom: 1,
  x: 0.5, // centre of the picture, as shares of the slab's width (to the right) and height
  y: 0.5,
  outlines: ["t2", "net2"],
  sample: -1, // -1: all samples as probability
  session: "",
  convention: "radiological",
  arm: "", // enlarged arm; empty for all
});

// Short names in the hash, with the type of each value.
const FIELDS = {
  f: ["forecast", String],
  s: ["slice", Number],
  m: ["mode", String],
  t: ["threshold", Number],
  c: ["scale", Number],
  l: ["low", Number],
  h: ["high", Number],
  z: ["zoom", Number],
  x: ["x", Number],
  y: ["y", Number],
  o: ["outlines", (text) => text.split(",").filter(Boolean)],
  n: ["sample", Number],
  i: ["session", String],
  v: ["convention", String],
  a: ["arm", String],
};
const CHOICES = {
  mode: ["probability", "difference", "outline"],
  convention: ["radiological", "neurological"],
};
const LIMITS = {
  slice: [-1, 4095], threshold: [-1, 1], scale: [-1, 1], low: [0, 254], high: [1, 255],
  zoom: [1, 8], x: [0, 1], y: [0, 1], sample: [-1, 15],
};

/** Return the hash of a state, without values that are those at the start. */
export function toHash(state) {
  const parts = new URLSearchParams();
  for (const [short, [name]] of Object.entries(FIELDS)) {
    const value = state[name];
    if (String(value) !== String(INITIAL[name])) {
      parts.set(short, typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value));
    }
  }
  return `#${parts}`;
}

/** Return the state of a hash. Values that no page could have written are ignored. */
export function fromHash(hash) {
  const state = { ...INITIAL };
  for (const [short, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    const [name, parse] = FIELDS[short] ?? [];
    if (name === undefined) continue;
    const value = parse(text);
    if (parse === Number) {
      const [low, high] = LIMITS[name];
      if (Number.isFinite(value) && value >= low && value <= high) state[name] = value;
    } else if (!(name in CHOICES) || CHOICES[name].includes(value)) {
      state[name] = value;
    }
  }
  return state;
}
