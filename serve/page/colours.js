// Colours: a perceptually uniform sequence (after inferno) and a diverging one, and outlines that
// colour-blind readers can tell apart (Okabe and Ito).

const SEQUENCE = [
  [110, 26, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164],
];
const LOWER = [[8, 48, 107], [33, 113, 181], [107, 174, 214], [198, 219, 239]]; // fewer lesions than the reference
const HIGHER = [[253, 208, 162], [253, 141, 60], [217, 72, 1], [127, 39, 4]]; // more

export const OUTLINES = {
  t2: { colour: "#56b4e9", dash: [], label: "existing T2 lesions" },
  gad: { colour: "#f0e442", dash: [], label: "gadolinium-enhancing lesions" },
  net2: { colour: "#00d68f", dash: [], label: "observed new lesions" },
  truth: { colour: "#ff8ad8", dash: [4, 3], label: "true new lesions (simulated)" },
};
export const SAMPLE_COLOUR = [255, 160, 40];

function interpolate(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const first = Math.min(Math.floor(place), stops.length - 2);
  return stops[first].map((value, k) => value + (stops[first + 1][k] - value) * (place - first));
}

/** Return 256 colours from the threshold to the top of the scale. */
export function sequential() {
  return Array.from({ length: 256 }, (_, i) => interpolate(SEQUENCE, i / 255));
}

/** Return 256 colours from minus the top of the scale to plus the top. */
export function diverging() {
  return Array.from({ length: 256 }, (_, i) =>
    i < 128 ? interpolate(LOWER, i / 127) : interpolate(HIGHER, (i - 128) / 127));
}

/**
 * Return opaque pixels [256 greys x 256 colours] of a colour over a grey, as 32-bit RGBA.
 * One lookup a voxel is all that drawing needs then.
 */
export function blendTable(colours, opacity, low, high) {
  const table = new Uint32Array(65536);
  const bytes = new Uint8ClampedArray(table.buffer);
  for (let grey = 0; grey < 256; grey++) {
    const base = windowed(grey, low, high);
    for (let c = 0; c < 256; c++) {
      const at = 4 * (grey * 256 + c);
      for (let k = 0; k < 3; k++) bytes[at + k] = base * (1 - opacity) + colours[c][k] * opacity;
      bytes[at + 3] = 255;
    }
  }
  return table;
}

/** Return opaque pixels of the 256 greys. */
export function greyTable(low, high) {
  const table = new Uint32Array(256);
  const bytes = new Uint8ClampedArray(table.buffer);
  for (let grey = 0; grey < 256; grey++) {
    bytes.fill(windowed(grey, low, high), 4 * grey, 4 * grey + 3);
    bytes[4 * grey + 3] = 255;
  }
  return table;
}

function windowed(grey, low, high) {
  return (255 * Math.min(Math.max(grey - low, 0), high - low)) / Math.max(high - low, 1);
}
