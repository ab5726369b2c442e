"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("controls");
  const grid = document.getElementById("cards");
  const fields = form.elements;
  const cards = Array.from(grid.children, (node, place) => ({
    node,
    place,
    // All text of the data stands in bdi; folded text counts too.
    text: Array.from(node.querySelectorAll("bdi"), (part) => part.textContent).join("\n").toLowerCase(),
    variants: Array.from(node.querySelectorAll(".variant"), (part) => part.textContent),
    scores: Array.from(node.querySelectorAll(".score")),
    change: node.querySelector(".change"),
  }));

  const rounded = (number) => number.toFixed(1).replace(/^-(?=0\.0$)/, "");
  const shown = (number) => (number === null ? "-" : rounded(number).replace("-", "\u2212"));
  const signed = (number) => (number !== null && Number(rounded(number)) > 0 ? "+" : "") + shown(number);

  function measure(settings) {
    const values = data.values[settings.metric];
    for (const card of cards) {
      card.score = values[settings.second][card.place];
      const first = settings.first === undefined ? 0 : values[settings.first][card.place];
      card.difference = card.score === null || first === null ? null : card.score - first;
      card.scores.forEach((node, index) => {
        node.textContent = shown(values[card.variants[index]][card.place]);
        node.title = `${settings.label} of this ${data.asked}`;
      });
      if (card.change) {
        card.change.querySelector(".what").textContent = `${settings.label}, ${settings.second} less ${settings.first}`;
        card.change.querySelector("strong").textContent = signed(card.difference);
      }
    }
  }

  const tests = {
    all: () => true,
    gain: (difference) => difference > 1e-6,
    loss: (difference) => difference < -1e-6,
    tie: (difference) => Math.abs(difference) <= 1e-6,
  };

  function fits(card, settings) {
    if (!settings.words.every((word) => card.text.includes(word))) return false;
    if (card.difference === null) return settings.show === "all" && settings.least === 0;
    return tests[settings.show](card.difference) && Math.abs(card.difference) >= settings.least;
  }

  function compare(one, other, key, sign) {
    // What is not known comes last.
    if (one[key] === null || other[key] === null) return (one[key] === null) - (other[key] === null);
    return sign * (one[key] - other[key]);
  }

  function update() {
    const settings = {
      metric: fields.metric.value,
      label: fields.metric.selectedOptions[0].textContent,
      second: fields.second.value,
      first: fields.first?.value,
      show: fields.show?.value ?? "all",
      least: Math.max(Number(fields.least?.value ?? 0) || 0, 0),
      words: fields.text.value.toLowerCase().split(/\s+/).filter(Boolean),
    };
    measure(settings);
    const [key, sign] = fields.order.value.split(",");
    const order = cards.slice();
    if (key !== "data") order.sort((one, other) => compare(one, other, key, Number(sign)) || one.place - other.place);
    let count = 0;
    for (const card of order) {
      card.node.hidden = !fits(card, settings);
      count += !card.node.hidden;
    }
    // A card that is moved loses the focus.
    if (order.some((card, place) => grid.children[place] !== card.node)) grid.append(...order.map((card) => card.node));
    fields.count.value = `${count} of ${cards.length} ${data.asked}s`;
    document.getElementById("none").hidden = count > 0;
  }

  // A link to a case shows it, whatever the filters hide.
  function follow() {
    const target = document.getElementById(location.hash.slice(1));
    if (target === null || !grid.contains(target)) return;
    if (target.hidden) {
      form.reset();
      update();
    }
    target.scrollIntoView();
    target.focus({ preventScroll: true });
  }

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  // The fields get their first values after this event.
  form.addEventListener("reset", () => setTimeout(update));
  addEventListener("hashchange", follow);
  form.hidden = false;
  update();
})();
