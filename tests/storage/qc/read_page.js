// Acts on the page as a reader would, and reports what it then shows.
(async () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const subjects = () => all("#cases tbody th").map((cell) => cell.firstChild.textContent);
  const choose = (id, value) => {
    const field = document.getElementById(id);
    if (field.type === "checkbox") field.checked = value; else field.value = value;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const pause = () => new Promise((done) => setTimeout(done, 10));
  const reset = async () => {
    one("#controls").reset();
    await pause();
  };
  const seen = { first: subjects(), excluded: one("#excluded-shown").textContent };
  for (const order of ["falling", "rising"]) {
    document.getElementById("sort-month.12_t2_ml").click();
    seen[order] = subjects();
  }
  seen.sorted = one("#cases [aria-sort]").getAttribute("aria-sort");
  choose("sort", "month 0_t2_count");
  await reset();
  choose("flagged", true);
  seen.flagged = subjects();
  seen.shown = one("#shown").textContent;
  choose("flag", "field covers …% of the slab");
  seen.kind = subjects();
  choose("arm", "placebo");
  seen.arm = subjects();
  await reset();
  choose("split", "val");
  seen.split = subjects();
  await reset();
  choose("text", "AVONEX empty");
  seen.text = subjects();
  choose("text", "nan");
  seen.nothing = [subjects(), one("#shown").textContent, one("#excluded-shown").textContent];
  await reset();
  seen.reset = subjects();

  const picture = one("#cases .flair");
  await picture.decode();
  seen.loaded = [picture.naturalWidth > 100, picture.loading];
  const place = () => getComputedStyle(picture).objectPosition;
  seen.middle = place();
  choose("slice", "1");
  seen.top = place();
  press("o");
  seen.outlines = getComputedStyle(one("#cases .outline")).visibility;
  one("#cases td.picture button").click();
  press("ArrowRight");
  seen.title = one("#details-title").textContent;
  seen.strips = all("#strips .strip").length;
  seen.values = one("#values").textContent.includes("becomes -1");
  seen.address = location.hash;
  const closed = new Promise((done) => one("#details").addEventListener("close", done));
  one("#details").close();
  await closed;
  seen.focused = document.activeElement.getAttribute("aria-label");
  press("/");
  seen.search = document.activeElement.id;
  report(seen);
})();
