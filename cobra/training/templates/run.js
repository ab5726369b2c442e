"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { state, written } = document.body.dataset;
  const grouped = new Intl.NumberFormat("en");

  for (const node of document.querySelectorAll("time")) {
    node.textContent = new Date(node.dateTime).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
  }

  // All charts show the values of one step; none is the newest.
  const charts = Array.from(document.querySelectorAll(".chart"), (node) => ({
    node,
    curves: data.charts[node.dataset.chart].curves,
    cross: node.querySelector(".cross"),
    range: node.querySelector(".scrub"),
    values: Array.from(node.querySelectorAll(".value")),
    labels: Array.from(node.querySelectorAll(".legend > span"), (part) => part.childNodes[1].textContent.trim()),
  }));

  function nearest(steps, step) {
    const after = steps.findIndex((other) => other >= step);
    if (after <= 0) return after === 0 ? 0 : steps.length - 1;
    return step - steps[after - 1] < steps[after] - step ? after - 1 : after;
  }

  function scrub(step) {
    for (const { node, curves, cross, range, values, labels } of charts) {
      node.classList.toggle("scrubbed", step !== null);
      const places = curves.map(({ steps }) => (step === null ? steps.length - 1 : nearest(steps, step)));
      curves.forEach((curve, number) => { values[number].textContent = curve.values[places[number]]; });
      const at = curves[0].steps[places[0]];
      node.querySelector(".at").textContent = step === null ? "" : `step ${grouped.format(at)}`;
      range.value = places[0];
      const shown = curves.map((curve, number) => `${labels[number]} ${curve.values[places[number]]}`.trim());
      range.setAttribute("aria-valuetext", `step ${grouped.format(at)}: ${shown.join(", ")}`);
      for (const end of ["x1", "x2"]) cross.setAttribute(end, `${curves[0].places[places[0]]}%`);
    }
  }

  for (const { curves, range } of charts) {
    range.hidden = false;
    range.addEventListener("input", () => scrub(curves[0].steps[range.value]));
    range.addEventListener("blur", () => scrub(null));
    range.addEventListener("pointerleave", () => scrub(null));
    range.addEventListener("pointermove", (event) => {
      const { left, width } = range.getBoundingClientRect();
      const place = (100 * (event.clientX - left)) / width;
      const { places, steps } = curves[0];
      scrub(steps[nearest(places, place)]);
    });
  }
  scrub(null);

  // Answers of one validation at a time.
  const slider = document.getElementById("step");
  function answersOf(place) {
    const step = String(data.steps[place]);
    slider.value = place;
    for (const node of document.querySelectorAll(".answer")) node.hidden = node.dataset.step !== step;
    for (const node of document.querySelectorAll(".marks li")) node.classList.toggle("now", node.dataset.step === step);
    const text = data.validations[place];
    document.getElementById("shown").textContent = text;
    slider.setAttribute("aria-valuetext", `step ${text}`);
  }
  slider?.addEventListener("input", () => answersOf(Number(slider.value)));

  // A stage is folded alike in all answers about a row.
  const folds = Array.from(document.querySelectorAll("details"), (node) => {
    const part = node.closest(".said");
    return [part ? `${part.dataset.part} ${node.className}` : node.id, node];
  });
  for (const [name, node] of folds) {
    node.addEventListener("toggle", () => {
      for (const [other, twin] of folds) if (other === name) twin.open = node.open;
    });
  }

  // What a reload would lose travels in the entry of the history, which works for files too.
  const before = history.state ?? {};
  const follow = document.getElementById("follow");
  let follows = before.follows ?? true;
  follow.hidden = state === "finished";
  function keep() {
    const isNewest = slider === null || slider.value === slider.max;
    history.replaceState({
      follows,
      scroll: scrollY,
      step: isNewest ? null : data.steps[slider.value],
      focus: document.activeElement?.id ?? "",
      open: folds.filter(([, node]) => node.open).map(([name]) => name),
    }, "");
  }
  for (const [name, node] of folds) node.open = before.open?.includes(name) ?? node.open;
  if (slider) answersOf(before.step == null ? data.steps.length - 1 : nearest(data.steps, before.step));
  if (before.focus) document.getElementById(before.focus)?.focus({ preventScroll: true });
  history.scrollRestoration = "manual";
  if (before.scroll !== undefined) scrollTo(0, before.scroll);
  else if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  addEventListener("pagehide", keep);

  let touched = 0;
  for (const kind of ["pointerdown", "pointermove", "keydown", "wheel", "touchmove"]) {
    addEventListener(kind, () => { touched = Date.now(); }, { passive: true });
  }
  const isBusy = () => document.hidden || Date.now() - touched < 2000 || !getSelection().isCollapsed;

  // A page that a server no longer gives stays as it is.
  async function isThere() {
    if (location.protocol === "file:") return true;
    try {
      return (await fetch(location.href, { method: "HEAD", cache: "no-store" })).ok;
    } catch {
      return false;
    }
  }

  const seconds = data.seconds;
  let next = Date.now() + 1000 * seconds;
  async function look() {
    const age = (Date.now() - Date.parse(written)) / 1000;
    document.getElementById("stale").hidden = state !== "running" || age < data.stale;
    if (!follows || Date.now() < next || isBusy()) return;
    next = Date.now() + 1000 * seconds;
    if (await isThere()) {
      keep();
      location.reload();
    }
  }

  if (state !== "finished") {
    follow.setAttribute("aria-pressed", String(follows));
    follow.addEventListener("click", () => {
      follows = !follows;
      follow.setAttribute("aria-pressed", String(follows));
      keep();
    });
    setInterval(look, 500);
    look();
  }
})();
