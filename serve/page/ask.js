// Ask for a forecast: a patient of the store, or files of one's own.

import { ProblemError } from "./api.js";
import { element } from "./compare.js";

const $ = (id) => document.getElementById(id);
const REQUIRED = ["w000/flair", "w048/flair"];
const KIND_NAMES = { flair: "FLAIR", t2: "T2 lesion mask", gad: "gadolinium lesion mask", net2: "mask of new lesions", parcellation: "parcellation", brain_mask: "brain mask" };
const FIELDS = ["w000/flair", "w048/flair", "w000/t2", "w048/t2", "w000/gad", "w048/gad", "w048/net2", "w048/parcellation", "w048/brain_mask"];

const KIND_PATTERNS = [
  ["net2", /net2/i], ["gad", /gad/i], ["brain_mask", /brain/i], ["parcellation", /synthseg|dseg|aseg/i], ["t2", /t2/i], ["flair", /flair/i],
];

export class Ask {
  /** `requested(status)` is called with the answer of the service. */
  constructor(api, requested) {
    this.api = api;
    this.requested = requested;
    this.model = null;
    this.timer = 0;
    $("subject-form").addEventListener("submit", (event) => { event.preventDefault(); this.#submitSubject(); });
    $("upload-form").addEventListener("submit", (event) => { event.preventDefault(); this.#submitUpload(); });
    $("upload-form").addEventListener("dragover", (event) => event.preventDefault());
    $("upload-form").addEventListener("drop", (event) => { event.preventDefault(); this.#takeDropped(event.dataTransfer.files); });
    $("subject").addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.searchSubjects($("subject").value), 150);
    });
  }

  /** Fill the options from the model's own description. */
  async load() {
    this.model = await this.api.json("v2/models/lesioncast");
    const { arms, sessions, visits } = this.model;
    this.#buildUploadFields(visits);
    $("arm-choice").replaceChildren(element("legend", "Treatments"), ...arms.map((arm) => {
      const label = element("label", "");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
      box.value = arm;
      label.append(box, ` ${arm}`);
      return label;
    }));
    $("reference").replaceChildren(...arms.map((arm) => new Option(arm, arm)));
    $("sessions").replaceChildren(...sessions.map((names) => new Option(names.map((name) => visits[name]).join(" and "), names.join())));
    this.#buildCovariates(this.model.covariates ?? []);
    await this.searchSubjects("");
  }

  async searchSubjects(text) {
    try {
      const found = await this.api.json(`v1/subjects?limit=${text ? 20 : 200}&search=${encodeURIComponent(text)}`);
      $("subjects").replaceChildren(...found.subjects.slice(0, 20).map((entry) => {
        // The networks may remember subjects that they were trained on.
        const seen = ["train", "val"].includes(entry.split) ? "used in training" : "not used in training";
        const option = new Option(entry.subject);
        option.label = `${entry.subject}: ${entry.arm ?? "unknown arm"}, ${seen}`;
        return option;
      }));
      if (!text && found.subjects.length) {
        this.first = (found.subjects.find((entry) => entry.split === "test") ?? found.subjects[0]).subject;
        $("subject").placeholder = this.first;
      }
    } catch (error) {
      if (!(error instanceof ProblemError)) throw error;
    }
  }

  /** Whether a first forecast may be requested unasked: only in demo mode. */
  get example() {
    return Boolean(this.model.demo && this.first);
  }

  /** Request a forecast of the first patient, once however often the page is opened. */
  requestExample() {
    return this.api.post("v1/forecasts", { subject: this.first, ...this.#parameters() }, { "Idempotency-Key": "example" });
  }

  #parameters() {
    const boxes = [...$("arm-choice").querySelectorAll("input")];
    const arms = boxes.filter((box) => box.checked).map((box) => box.value);
    const parameters = { samples: Number($("samples").value), sessions: $("sessions").value.split(",") };
    if (arms.length < boxes.length) parameters.arms = arms;
    parameters.reference_arm = arms.includes($("reference").value) ? $("reference").value : arms[0];
    return parameters;
  }

  async #submitSubject() {
    clearProblems();
    const subject = $("subject").value.trim();
    await this.#submit($("ask-subject"), () => this.api.post("v1/forecasts", { subject, ...this.#parameters() }));
  }

  async #submitUpload() {
    clearProblems();
    const form = new FormData();
    const parameters = this.#parameters();
    const covariates = this.#covariates();
    if (Object.keys(covariates).length) parameters.covariates = covariates;
    form.set("request", JSON.stringify(parameters));
    for (const input of $("upload-fields").querySelectorAll("input")) {
      if (input.files.length) form.set(input.name, input.files[0]);
    }
    await this.#submit($("upload-form").querySelector("button"), () => this.api.json("v1/forecasts", { method: "POST", body: form }));
  }

  async #submit(button, send) {
    button.disabled = true;
    try {
      this.requested(await send());
    } catch (error) {
      if (!(error instanceof ProblemError)) throw error;
      showProblem(error);
    } finally {
      button.disabled = false;
    }
  }

  #buildUploadFields(visits) {
    $("upload-fields").replaceChildren(...FIELDS.map((name) => {
      const [session, kind] = name.split("/");
      const label = element("label", `${KIND_NAMES[kind]} of ${visits[session]}${REQUIRED.includes(name) ? " (required)" : ""}`);
      const input = document.createElement("input");
      input.type = "file";
      input.name = name;
      input.accept = ".nii,.gz";
      input.required = REQUIRED.includes(name);
      const problem = element("p", "");
      problem.className = "problem";
      problem.dataset.field = name;
      problem.setAttribute("role", "alert");
      label.append(input);
      const box = document.createElement("div");
      box.append(label, problem);
      return box;
    }));
  }

  /** Give each dropped file to the field that its name speaks of, such as ses-w048 and FLAIR. */
  #takeDropped(files) {
    clearProblems();
    const left = [];
    for (const file of files) {
      const session = ["w000", "w048"].find((name) => file.name.includes(name));
      const kind = KIND_PATTERNS.find(([, pattern]) => pattern.test(file.name))?.[0];
      const input = $("upload-fields").querySelector(`input[name="${session}/${kind}"]`);
      if (input === null) left.push(file.name);
      else {
        const chosen = new DataTransfer();
        chosen.items.add(file);
        input.files = chosen.files;
      }
    }
    if (left.length) {
      $("upload-form").querySelector('.problem[data-field=""]').textContent =
        `Choose the field of ${left.join(", ")}: expected names with w000 or w048 and FLAIR, T2, Gad, NET2, synthseg or brain.`;
    }
  }

  #buildCovariates(covariates) {
    $("covariates").hidden = !covariates.length;
    $("covariates").replaceChildren(element("legend", "Covariates of an upload"), ...covariates.map((covariate) => {
      const label = element("label", covariate.name);
      const input = covariate.levels?.length ? document.createElement("select") : document.createElement("input");
      input.name = covariate.name;
      if (covariate.levels?.length) input.replaceChildren(new Option("unknown", ""), ...covariate.levels.map((level) => new Option(level, level)));
      else Object.assign(input, { type: "number", step: "any", placeholder: "unknown" });
      label.append(" ", input);
      return label;
    }));
  }

  #covariates() {
    const values = {};
    for (const input of $("covariates").querySelectorAll("input, select")) {
      if (input.value !== "") values[input.name] = input.tagName === "SELECT" ? input.value : Number(input.value);
    }
    return values;
  }
}

export function clearProblems() {
  for (const place of document.querySelectorAll(".problem")) place.textContent = "";
}

/** Show the service's sentences, each at the field that it is about. */
export function showProblem(error, fallback = "subject") {
  const upload = $("upload-details").open && $("upload-form").contains(document.activeElement);
  const places = [...document.querySelectorAll(".problem")];
  const find = (field) => places.find((place) => place.dataset.field === field);
  for (const { field, detail } of error.errors.length ? error.errors : [{ field: null, detail: error.message }]) {
    const options = ["samples", "arms", "sessions", "reference_arm", "tolerance", "covariates"].includes(field?.split(".")[0]);
    const place = find(field) ?? (options ? find("options") : find(upload ? "" : fallback));
    if (options) $("options").open = true;
    place.textContent = detail;
  }
}
