"use strict";
// Draws the table from the data in the page. Text enters the page as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const columns = data.columns.map((column, position) => ({ ...column, position }));
const columnNamed = new Map(columns.map((column) => [column.name, column]));
const listed = columns.filter((column) => column.listed);
const numbers = listed.filter((column) => column.isNumber);
const fields = ["text", "flag", "arm", "split", "sort"];
const checks = ["flagged", "down"];
const CHUNK = 100;  // rows that are drawn at once; thousands would keep the reader waiting
let shown = [];  // the cases of the table, in its order
let drawn = 0;  // number of them that have their row in the page
let opened = -1;  // position in `shown` of the case in the dialog

const valueOf = (item, name) => item.values[columnNamed.get(name).position];
const armOf = (item) => valueOf(item, "arm") ?? "arm unknown";

function element(tag, properties = {}, ...children) {
  const { label, ...others } = properties;
  const made = Object.assign(document.createElement(tag), others);
  if (label) made.setAttribute("aria-label", label);
  made.append(...children);
  return made;
}

function format(item, column) {
  const value = item.values[column.position];
  if (value === null) return "–";
  if (column.unit === "%") return `${Math.round(100 * value)}%`;
  return column.unit === "ml" ? value.toFixed(2) : String(value);
}

// One slice in all sessions: a strip of the two pictures, at a share of their height.
function strip(item, share) {
  const picture = (suffix, alt, kind) => element("img", {
    src: encodeURI(`${item.picture}.${suffix}`), alt, className: kind, loading: "lazy", decoding: "async",
  });
  const made = element("span", { className: "strip" },
    picture("jpg", `${valueOf(item, "subject")}, FLAIR of all sessions`, "flair"), picture("png", "", "outline"));
  if (share !== undefined) made.style.setProperty("--share", share);
  return made;
}

const shareOf = (slice) => (data.slices > 1 ? slice / (data.slices - 1) : 0);

function row(item) {
  const open = element("button", { type: "button", label: `All slices of ${valueOf(item, "subject")}`, title: "all slices" }, strip(item));
  open.addEventListener("click", () => show(shown.indexOf(item)));
  const made = element("tr", { className: item.flags.length ? "flagged" : "clear" },
    element("th", { scope: "row" }, valueOf(item, "subject"), element("small", {}, armOf(item)), element("small", {}, valueOf(item, "split"))),
    element("td", { className: "flags" }, flagList(item)),
    element("td", { className: "picture" }, open));
  for (const column of numbers) {
    const cell = element("td", { className: "number" }, format(item, column));
    if (column.below && item.values[column.position] !== null)
      cell.append(element("br"), element("small", {}, format(item, columnNamed.get(column.below))));
    made.append(cell);
  }
  return made;
}

function flagList(item) {
  if (!item.flags.length) return element("small", {}, "nothing");
  return element("ul", {}, ...item.flags.map(([text]) => element("li", {}, text)));
}

function headings() {
  const groups = element("tr"), titles = element("tr");
  const sorter = (column) => {
    const button = element("button", { type: "button", id: `sort-${column.name}` }, column.title);
    button.addEventListener("click", () => sortBy(column));
    return button;
  };
  titles.append(
    element("th", { scope: "col" }, ...["subject", "arm", "split"].map((name) => sorter(columnNamed.get(name)))),
    element("th", { scope: "col" }, sorter(columnNamed.get("flags"))),
    element("th", { scope: "col" }, "one slice"));
  groups.append(element("td", { colSpan: 3 }));
  for (const column of numbers) {
    const last = groups.lastChild;
    if (column.group && last.textContent === column.group) last.colSpan += 1;
    else groups.append(element("th", { scope: "colgroup" }, column.group));
    titles.append(element("th", { scope: "col", className: "number" }, sorter(column)));
  }
  return [groups, titles];
}

function sortBy(column) {
  const same = byId("sort").value === column.name;
  byId("down").checked = same ? !byId("down").checked : column.isNumber || column.name === "flags";
  byId("sort").value = column.name;
  refresh();
}

function compare(column, down) {
  const sign = down ? -1 : 1;
  const key = column.name === "flags" ? (item) => item.flags.length : (item) => item.values[column.position];
  const subject = columnNamed.get("subject").position;
  const text = new Intl.Collator(undefined, { numeric: true }).compare;
  return (a, b) => {
    const one = key(a), other = key(b);
    if (one === null || other === null) return (one === null) - (other === null);  // missing ones last
    const order = typeof one === "number" ? one - other : text(one, other);
    return sign * order || text(a.values[subject], b.values[subject]);
  };
}

const normal = (text) => text.normalize("NFC").toLowerCase();
const found = (words, text) => words.every((word) => text.includes(word));

function refresh() {
  const query = Object.fromEntries([...fields.map((id) => [id, byId(id).value]), ...checks.map((id) => [id, byId(id).checked])]);
  const words = normal(query.text).split(/\s+/).filter(Boolean);
  shown = data.cases.filter((item) =>
    found(words, item.searched)
    && (!query.flagged || item.flags.length)
    && (!query.flag || item.flags.some(([, kind]) => kind === query.flag))
    && (!query.arm || armOf(item) === query.arm)
    && (!query.split || valueOf(item, "split") === query.split));
  shown.sort(compare(columnNamed.get(query.sort), query.down));
  byId("cases").tBodies[0].replaceChildren();
  drawn = 0;
  draw(CHUNK);
  markSorted(query.sort, query.down);
  const flagged = shown.filter((item) => item.flags.length).length;
  byId("shown").textContent = `${shown.length} of ${data.cases.length} shown, ${flagged} of them flagged`;
  refreshExcluded(words);
  if (byId("cases").getBoundingClientRect().top < 0) byId("cases").scrollIntoView();
  remember();
}

function draw(until) {
  byId("cases").tBodies[0].append(...shown.slice(drawn, until).map((item) => (item.row ??= row(item))));
  drawn = Math.max(drawn, Math.min(until, shown.length));
}

function markSorted(name, down) {
  const { tHead } = byId("cases");
  for (const button of tHead.querySelectorAll("button")) button.className = "";
  for (const cell of tHead.querySelectorAll("th")) cell.removeAttribute("aria-sort");
  const sorted = byId(`sort-${name}`);  // none for a column that only the details show
  if (!sorted) return;
  sorted.className = down ? "down" : "up";
  sorted.closest("th").setAttribute("aria-sort", down ? "descending" : "ascending");
}

function refreshExcluded(words) {
  if (!byId("excluded")) return;
  const left = data.excluded.filter((item) => found(words, item.searched));
  byId("excluded").querySelector("tbody").replaceChildren(...left.map((item) => element("tr", {},
    element("th", { scope: "row" }, item.subject),
    ...[item.session || "–", item.kind, item.reason, item.path || "–"].map((text) => element("td", {}, text)))));
  byId("excluded-shown").textContent = `${left.length} of ${data.excluded.length} shown`;
}

// The view stands in the address, so that it can be kept and sent.
function remember() {
  const kept = new URLSearchParams();
  for (const id of fields) if (byId(id).value) kept.set(id, byId(id).value);
  for (const id of checks) if (byId(id).checked) kept.set(id, "1");
  if (byId("details").open) kept.set("case", valueOf(shown[opened], "subject"));
  try {
    history.replaceState(null, "", `#${kept}`);
  } catch { /* Some browsers forbid it for files; the page works without. */ }
}

function recall() {
  if (location.hash.length < 2) return "";
  const kept = new URLSearchParams(location.hash.slice(1));
  for (const id of fields) if (kept.has(id)) byId(id).value = kept.get(id);
  byId("flagged").checked = kept.has("flagged");
  byId("down").checked = kept.has("down") || !kept.has("sort");
  if (!columnNamed.has(byId("sort").value)) byId("sort").value = "flags";
  return kept.get("case");
}

function show(position) {
  const item = shown[position];
  if (!item) return;
  opened = position;
  byId("details-title").textContent = `${valueOf(item, "subject")}, ${armOf(item)}, ${valueOf(item, "split")}`;
  byId("details-flags").replaceChildren(flagList(item));
  byId("strips").replaceChildren(...Array.from({ length: data.slices }, (_, slice) =>
    element("figure", {}, strip(item, shareOf(slice)), element("figcaption", {}, `slice ${slice + 1} of ${data.slices}, from the top`))));
  const groups = new Map();
  for (const column of columns.filter((each) => each.isNumber || each.group)) {
    if (!groups.has(column.group)) groups.set(column.group, element("dl"));
    groups.get(column.group).append(element("dt", {}, column.title), element("dd", {}, format(item, column)));
  }
  byId("values").replaceChildren(...[...groups].map(([group, list]) => element("section", {}, element("h3", {}, group), list)));
  byId("previous").disabled = opened === 0;
  byId("next").disabled = opened === shown.length - 1;
  if (!byId("details").open) byId("details").showModal();
  remember();
}

function fill(id, values) {
  for (const [value, label] of values) byId(id).append(element("option", { value }, label));
}

function counted(items) {
  const counts = new Map();
  for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]).map(([value, count]) => [value, `${value} (${count})`]);
}

function showSlice() {
  const slice = Number(byId("slice").value);
  byId("slice-shown").textContent = `${slice} of ${data.slices}`;
  byId("cases").style.setProperty("--share", shareOf(slice - 1));
}

const showOutlines = () => document.body.classList.toggle("plain", !byId("outlines").checked);

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (byId("details").open && event.key === "ArrowLeft") show(opened - 1);
  else if (byId("details").open && event.key === "ArrowRight") show(opened + 1);
  else if (/^(INPUT|SELECT)$/.test(event.target.tagName)) return;
  else if (event.key === "/") {
    event.preventDefault();
    byId("text").focus();
  } else if (event.key === "o") {
    byId("outlines").checked = !byId("outlines").checked;
    showOutlines();
  }
}

for (const item of data.cases) item.searched = normal(item.values.filter((value) => typeof value === "string").join(" "));
for (const item of data.excluded) item.searched = normal(Object.values(item).join(" "));
fill("flag", counted(data.cases.flatMap((item) => [...new Set(item.flags.map(([, kind]) => kind))])));
fill("arm", counted(data.cases.map(armOf)));
fill("split", counted(data.cases.map((item) => valueOf(item, "split"))));
fill("sort", columns.map((column) => [column.name, column.group ? `${column.group}: ${column.title}` : column.title]));
byId("cases").tHead.append(...headings());
byId("sort").value = "flags";
byId("down").checked = true;
const kept = recall();
byId("controls").addEventListener("input", refresh);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("controls").addEventListener("reset", () => setTimeout(() => {
  byId("sort").value = "flags";
  byId("down").checked = true;
  showOutlines();
  showSlice();
  refresh();
}));
byId("slice").addEventListener("input", showSlice);
byId("outlines").addEventListener("input", showOutlines);
byId("previous").addEventListener("click", () => show(opened - 1));
byId("next").addEventListener("click", () => show(opened + 1));
byId("details").addEventListener("close", () => {
  draw(opened + 1);
  shown[opened].row.querySelector("button").focus();
  remember();
});
document.addEventListener("keydown", onKey);
addEventListener("beforeprint", () => draw(shown.length));
new IntersectionObserver(([end]) => end.isIntersecting && draw(drawn + CHUNK), { rootMargin: "2000px" }).observe(byId("end"));
// The head of the table sticks below the controls, whose height depends on the window.
new ResizeObserver(() => document.body.style.setProperty("--bar", `${byId("controls").offsetHeight}px`)).observe(byId("controls"));
showSlice();
refresh();
if (kept) show(shown.findIndex((item) => valueOf(item, "subject") === kept));
