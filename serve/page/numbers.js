// The numbers of a forecast as sentences, table and CSV.

const REGION_NAMES = { white_matter: "White matter", cortex: "Cortex" };

export function percent(share) {
  if (share === null || share === undefined) return "–";
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}

export function decimal(value, digits = 2) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

/** Return P(active) of an arm: in closed form, or the share of samples. */
export function activeProbability(arm) {
  return arm.p_active ?? arm.active_fraction?.value ?? null;
}

export function expectedLesions(arm) {
  return arm.expected_lesions ?? arm.lesions?.value ?? null;
}

/** Return whether the difference to the reference is smaller than its error: that of sampling, or
 * that of mean differences in the evaluation of the bundle. */
export function isUncertain({ minus_reference: difference, difference_error: error }) {
  if (difference === null) return false;
  return (difference.low <= 0 && difference.high >= 0) || Math.abs(difference.value) <= (error ?? 0);
}

/** Return one sentence on the arms with the highest and the lowest P(active). */
export function summarySentence(view) {
  const known = view.arms.map((name) => view.numbers.get(name)).filter((arm) => activeProbability(arm) !== null);
  if (!known.length) return "No samples yet.";
  const text = (arm) =>
    `${percent(activeProbability(arm))} under ${arm.name} (${decimal(expectedLesions(arm))} lesions expected)`;
  const sorted = [...known].sort((a, b) => activeProbability(b) - activeProbability(a));
  const [most, least] = [sorted[0], sorted.at(-1)];
  const subject = `For ${view.header.subject}, the model puts the chance of new lesions at`;
  if (known.length === 1) return `${subject} ${text(most)}.`;
  if (percent(activeProbability(most)) === percent(activeProbability(least))) {
    return `${subject} ${percent(activeProbability(most))} under every treatment shown.`;
  }
  return `${subject} ${text(least)}, lowest, and ${text(most)}, highest.`;
}

function regionTitle(view) {
  return view.header.arms.every((arm) => arm.regions_in_closed_form) ? "Probability of a lesion in:" : "Samples with a lesion in:";
}

/** Return in words which cases taught the calibrated numbers. */
export function calibrationText({ calibration }) {
  if (!calibration) return "not calibrated";
  const simulated = calibration.simulated ? ", simulated" : "";
  return `${calibration.cohort}${simulated}; ${calibration.cases} had these images (${calibration.images})`;
}

/** Return the calibrated intervals of the number of lesions, such as "0 to 2 (80 %), 0 to 4 (90 %)". */
function calibratedLesions(arm) {
  const intervals = arm.calibrated?.count_intervals ?? [];
  return intervals.map(({ level, low, high }) => `${low} to ${high} (${Math.round(100 * level)} %)`).join(", ") || "–";
}

/** Return the columns of the table: a title, and the cell of an arm as text. */
function columns(view) {
  const calibrated = view.header.calibration ? [
    ["P(active), recalibrated", (arm) => percent(arm.calibrated?.p_active)],
    ["Lesions, calibrated intervals", calibratedLesions],
  ] : [];
  const regions = [...new Set(view.header.arms.flatMap((arm) => Object.keys(arm.regions)))];
  return [
    ["Treatment", (arm) => arm.name + (arm.received ? " (received)" : "")],
    ["P(active)", (arm) => percent(activeProbability(arm))],
    ["Samples with a lesion (95 % interval)", (arm) => {
      const share = arm.active_fraction;
      return share ? `${percent(share.value)} (${percent(share.low)} to ${percent(share.high)})` : "–";
    }],
    ["Expected lesions", (arm) => decimal(expectedLesions(arm))],
    ["Lesions in 90 % of samples", (arm) =>
      arm.lesions ? `${decimal(arm.lesions.low, 0)} to ${decimal(arm.lesions.high, 0)}` : "–"],
    ...calibrated,
    ["Mean volume, mm³", (arm) => decimal(arm.volume_mm3, 0)],
    ...regions.map((region) => [`${regionTitle(view)} ${REGION_NAMES[region] ?? region}`, (arm) => percent(arm.regions[region])]),
    [`P(active) minus ${view.header.reference_arm}`, (arm) =>
      arm.name === view.header.reference_arm ? "reference" : differenceText(arm)],
    ["Samples", (arm) => String(arm.samples)],
  ];
}

function differenceText({ minus_reference: difference, difference_error: error }) {
  if (difference === null) return "–";
  const points = (value) => `${value > 0 ? "+" : ""}${(100 * value).toFixed(1)}`;
  const range = difference.high > difference.low ? ` (${points(difference.low)} to ${points(difference.high)})` : "";
  const known = error === null ? "" : `, error in evaluation ${(100 * error).toFixed(1)}`;
  return `${points(difference.value)} points${range}${known}`;
}

/** Fill the table. Differences within their error are grey and say so. */
export function fillTable(table, view) {
  const cells = columns(view);
  const head = document.createElement("tr");
  for (const [title] of cells) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = title;
    head.append(cell);
  }
  const body = document.createElement("tbody");
  for (const name of view.arms) {
    const arm = view.numbers.get(name);
    const row = document.createElement("tr");
    cells.forEach(([title, text], k) => {
      const cell = document.createElement(k === 0 ? "th" : "td");
      if (k === 0) cell.scope = "row";
      cell.textContent = text(arm);
      if (title.startsWith("P(active) minus") && name !== view.header.reference_arm && isUncertain(arm)) {
        cell.className = "uncertain";
        cell.textContent += ", within the error";
      }
      row.append(cell);
    });
    body.append(row);
  }
  const thead = document.createElement("thead");
  thead.append(head);
  table.replaceChildren(thead, body);
}

/** Return the table as CSV, with the warnings as comments. */
export function toCsv(view) {
  const quote = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const cells = columns(view);
  const { header } = view;
  const comments = [
    `Forecast ${header.forecast} of ${header.subject}, bundle ${header.bundle}`,
    `Calibrated on: ${calibrationText(header)}`, header.typicality, ...header.warnings, ...header.disclaimers, ...header.notes,
  ];
  const rows = [cells.map(([title]) => title), ...view.arms.map((name) => cells.map(([, text]) => text(view.numbers.get(name))))];
  return [...comments.map((text) => `# ${text}`), ...rows.map((row) => row.map(quote).join(","))].join("\r\n") + "\r\n";
}
