// 3-D on demand: one NiiVue in a dialog, with the FLAIR and the map of one treatment.

const $ = (id) => document.getElementById(id);
let niivue = null;

/** Open the dialog. Says why there is no 3-D view where the browser or the service lacks it. */
export async function open3d(api, view) {
  const select = $("arm-3d");
  select.replaceChildren(...view.arms.map((arm) => new Option(arm, arm)));
  select.onchange = () => show(api, view, select.value);
  $("dialog-3d").showModal();
  await show(api, view, select.value);
}

async function show(api, view, arm) {
  const say = (text) => { $("message-3d").textContent = text; };
  if (!hasWebgl2()) return say("This browser has no WebGL 2, which the 3-D view needs. The slices above show the same numbers.");
  say("Loading ...");
  try {
    await loadLibrary();
  } catch {
    return say("The service has no 3-D viewer (NiiVue of nilearn 0.14.1). The slices above show the same numbers.");
  }
  release();
  const canvas = document.createElement("canvas");
  $("canvas-3d").replaceChildren(canvas);
  const { Niivue, NVImage, SLICE_TYPE } = globalThis.niivue;
  niivue = new Niivue({
    isRadiologicalConvention: true, dragAndDropEnabled: false, isColorbar: true,
    isOrientationTextVisible: true, isNearestInterpolation: true, backColor: [0, 0, 0, 1], loadingText: "",
    crosshairWidth: 0.5, crosshairColor: [1, 1, 1, 0.7],
  });
  await niivue.attachToCanvas(canvas);
  const session = view.flair.keys().next().value;
  const flair = niftiFile(view, view.flair.get(session), 2);
  const map = niftiFile(view, view.probability.get(arm), 16);
  const top = view.probability.get(arm).reduce((a, b) => Math.max(a, b), 0);
  niivue.addVolume(await NVImage.loadFromUrl({ url: flair, name: `${session}_FLAIR.nii`, colormap: "gray", cal_min: 0, cal_max: 255 }));
  niivue.addVolume(await NVImage.loadFromUrl({ url: map, name: `${arm}.nii`, colormap: "inferno", cal_min: top / 20, cal_max: Math.max(top, 1e-4), opacity: 0.7 }));
  niivue.setSliceType(SLICE_TYPE.MULTIPLANAR);
  say(`${arm}: probability of ${view.header.target}, over the FLAIR of ${session}. The patient's right is on the left.`);
}

function hasWebgl2() {
  const context = document.createElement("canvas").getContext("webgl2");
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return context !== null;
}

function loadLibrary() {
  if (globalThis.niivue) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "page/niivue.js";
    script.onload = resolve;
    script.onerror = reject;
    document.head.append(script);
  });
}

/** Close the dialog and give the graphics context back. */
export function close3d() {
  release();
  $("canvas-3d").replaceChildren();
  if ($("dialog-3d").open) $("dialog-3d").close();
}

function release() {
  niivue?.gl?.getExtension("WEBGL_lose_context")?.loseContext();
  niivue = null;
}

/** Return a NIfTI-1 file of an array [s, h, w]; `datatype` is 2 for uint8 and 16 for float32. */
function niftiFile(view, values, datatype) {
  const { shape, spacing_mm: spacing, affine } = view.header;
  const file = new ArrayBuffer(352 + values.byteLength);
  const data = new DataView(file);
  data.setInt32(0, 348, true);
  [3, shape[2], shape[1], shape[0], 1, 1, 1, 1].forEach((size, k) => data.setInt16(40 + 2 * k, size, true));
  data.setInt16(70, datatype, true);
  data.setInt16(72, datatype === 2 ? 8 : 32, true);
  [1, spacing[2], spacing[1], spacing[0], 1, 1, 1, 1].forEach((size, k) => data.setFloat32(76 + 4 * k, size, true));
  data.setFloat32(108, 352, true);
  data.setFloat32(112, 1, true);
  data.setUint8(123, 2); // mm
  data.setInt16(254, 1, true); // sform_code
  affine.slice(0, 3).flat().forEach((value, k) => data.setFloat32(280 + 4 * k, value, true));
  [110, 43, 49, 0].forEach((byte, k) => data.setUint8(344 + k, byte)); // "n+1"
  new Uint8Array(file, 352).set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  return file;
}
