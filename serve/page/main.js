// The page: ties requests, the comparison and exports together.

import { Api, ProblemError } from "./api.js";
import { Ask, clearProblems, showProblem } from "./ask.js";
import { Compare, element } from "./compare.js";
import { fromHash, toHash } from "./state.js";
import { embeddedView, saveAnswer, savePicture, saveTable } from "./take.js";
import { decodeView, unpackBits } from "./view.js";
import { close3d, open3d } from "./volume3d.js";

const $ = (id) => document.getElementById(id);
const RUNNING = ["accepted", "running"];
const STATE_NAMES = { accepted: "waiting", running: "running", succeeded: "done", failed: "failed", cancelled: "cancelled", deleted: "deleted", expired: "expired" };

const api = new Api();
let state = fromHash(globalThis.EMBEDDED_HASH ?? location.hash);
let following = null; // aborts the stream of events

const compare = new Compare({
  change,
  loadSample: async (view, arm, index) =>
    unpackBits(await api.bytes(`v1/forecasts/${view.header.forecast}/arms/${encodeURIComponent(arm)}/samples/${index}`), view.size),
});
const ask = new Ask(api, (status) => openForecast(status.id));

let writing = 0;
function change(patch) {
  state = { ...state, ...patch };
  compare.update(state);
  clearTimeout(writing);
  // Browsers refuse many changes of the address in a short time.
  writing = setTimeout(() => { if (!globalThis.EMBEDDED_VIEW) history.replaceState(null, "", toHash(state)); }, 200);
}

function say(text) {
  $("message").textContent = text;
}

/** Show what there is of a forecast, and follow it until it has finished. */
async function openForecast(id, kept = {}) {
  following?.abort();
  following = new AbortController();
  const { signal } = following;
  clearProblems();
  say("");
  if (state.forecast !== id) {
    $("compare").hidden = true;
    const { outlines, convention, mode } = state;
    state = { ...fromHash(""), outlines, convention, mode };
  }
  change({ ...kept, forecast: id });
  markCurrent();
  try {
    let status = await api.json(`v1/forecasts/${id}`, { signal });
    showProgress(status);
    if (RUNNING.includes(status.state)) {
      let drawn = -1;
      for await (status of api.follow(id, signal)) {
        showProgress(status);
        if (status.progress.done !== drawn && RUNNING.includes(status.state)) {
          drawn = status.progress.done;
          await showView(id, signal);
        }
      }
      listEarlier();
    }
    if (status.state === "succeeded") await showView(id, signal);
    else if (status.state === "failed") say(`The forecast failed. ${status.error ?? ""}`);
    else if (!RUNNING.includes(status.state)) { say(`The forecast was ${STATE_NAMES[status.state]}.`); $("compare").hidden = true; }
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ProblemError)) throw error;
    say(error.message);
    $("progress").hidden = true;
  }
}

function showProgress(status) {
  const running = RUNNING.includes(status.state);
  $("progress").hidden = !running;
  const { done, total } = status.progress;
  $("progress-bar").max = Math.max(total, 1);
  $("progress-bar").value = done;
  $("progress-text").textContent = `${status.request?.subject ?? ""}: ${done} of ${total} samples`;
}

async function showView(id, signal) {
  display(decodeView(await api.bytes(`v1/forecasts/${id}/view`, { signal })));
}

function display(view) {
  $("compare").hidden = false;
  const done = view.header.complete;
  for (const node of document.querySelectorAll(".finished")) node.hidden = !done || Boolean(globalThis.EMBEDDED_VIEW);
  $("nifti-arm").replaceChildren(...view.arms.map((arm) => new Option(arm, arm)));
  change(compare.show(view, state));
  document.title = `${view.header.subject} · lesioncast`;
}

async function listEarlier() {
  const { forecasts } = await api.json("v1/forecasts?limit=50");
  $("earlier").replaceChildren(...forecasts.map((forecast) => {
    const item = document.createElement("li");
    const subject = forecast.subject ?? forecast.request?.subject ?? "";
    const button = element("button", `${subject} · ${STATE_NAMES[forecast.state]}`);
    button.type = "button";
    button.className = "plain";
    button.dataset.forecast = forecast.id;
    button.addEventListener("click", () => openForecast(forecast.id));
    item.append(button);
    return item;
  }));
  if (!forecasts.length) $("earlier").replaceChildren(element("li", "None yet."));
  markCurrent();
  return forecasts;
}

function markCurrent() {
  for (const button of $("earlier").querySelectorAll("button")) button.setAttribute("aria-current", String(button.dataset.forecast === state.forecast));
}

/** Run an action of a button, and show the service's sentence if it is refused. */
function onClick(id, action) {
  $(id).addEventListener("click", async () => {
    clearProblems();
    try {
      await action();
    } catch (error) {
      if (!(error instanceof ProblemError)) throw error;
      showProblem(error, "take");
    }
  });
}

onClick("cancel", async () => {
  await api.send(`v1/forecasts/${state.forecast}`, { method: "DELETE" });
  await listEarlier();
});
onClick("take-png", () => savePicture(compare));
onClick("take-csv", () => saveTable(compare.view));
onClick("take-html", () => saveAnswer(api, `v1/forecasts/${state.forecast}/html?state=${encodeURIComponent(toHash(state))}`, "forecast.html"));
onClick("take-zip", () => saveAnswer(api, `v1/forecasts/${state.forecast}/derivative`, "forecast.zip"));
onClick("take-nifti", () => saveAnswer(api, `v1/forecasts/${state.forecast}/arms/${encodeURIComponent($("nifti-arm").value)}`, "forecast.nii.gz"));
onClick("take-seg", () => {
  const form = new FormData();
  for (const file of $("series").files) form.append("series", file);
  return saveAnswer(api, `v1/forecasts/${state.forecast}/segmentation`, "forecast_seg.dcm", { method: "POST", body: form });
});
onClick("take-link", async () => {
  history.replaceState(null, "", toHash(state));
  await navigator.clipboard.writeText(location.href);
  $("take-link").textContent = "Link copied";
});
onClick("open-3d", () => open3d(api, compare.view));
$("close-3d").addEventListener("click", close3d);
$("dialog-3d").addEventListener("close", close3d);
$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  api.signIn($("api-key").value.trim());
  start();
});
globalThis.addEventListener("hashchange", () => {
  const next = fromHash(location.hash);
  if (next.forecast && next.forecast !== state.forecast) openForecast(next.forecast, next);
  else change(next.forecast ? next : {});
});

/** Load what the page needs. Without a valid key it asks for one. */
async function start() {
  const embedded = await embeddedView();
  if (embedded) {
    for (const id of ["ask", "sign-in", "open-3d", "take-html", "take-link"]) $(id).hidden = true;
    $("layout").style.gridTemplateColumns = "minmax(0, 1fr)";
    const view = decodeView(embedded);
    for (const arm of view.header.arms) arm.kept_samples = 0;
    display(view);
    return;
  }
  try {
    await ask.load();
    const forecasts = await listEarlier();
    $("sign-in").hidden = true;
    say("");
    const latest = forecasts.find((forecast) => forecast.state === "succeeded") ?? forecasts[0];
    if (state.forecast) await openForecast(state.forecast, state);
    else if (latest) await openForecast(latest.id);
    else if (ask.example) await openForecast((await ask.requestExample()).id);
    else say("Choose a patient, or send two scans, to see where new lesions are likely under each treatment.");
  } catch (error) {
    if (!(error instanceof ProblemError)) throw error;
    $("sign-in").hidden = ![401, 403].includes(error.status);
    say(error.status === 401 ? "This service needs an API key." : error.message);
    $("api-key").focus();
  }
}

start();
