"use strict";
// The sample browser: unpacks what the page holds and shows one prompt at a time. All text is set as text.
(async () => {
  const packed = document.getElementById("packed");
  if (!packed) return;
  const [form, find, prompt, state, told, asked, shown] =
    ["browser", "find", "prompt", "state", "told", "asked", "shown"].map((id) => document.getElementById(id));
  if (!("DecompressionStream" in window)) {
    told.textContent = "This browser cannot unpack the samples; a newer one can.";
    return;
  }
  const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const entries = JSON.parse(await new Response(unpacked).text());

  const element = (name, text, className) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const chip = (text) => {
    const good = text === "kept" || text === "passed";
    return element("span", text, good ? "chip good" : "chip bad");
  };

  const list = () => {
    const wanted = find.value.toLowerCase();
    const groups = new Map();
    entries.forEach((entry, index) => {
      if (!entry.id.toLowerCase().includes(wanted)) return;
      if (state.value && !entry.samples.some((sample) => sample[2] === state.value)) return;
      if (!groups.has(entry.panel)) {
        const group = document.createElement("optgroup");
        group.label = entry.panel;
        groups.set(entry.panel, group);
      }
      const option = element("option", entry.id);
      option.value = index;
      groups.get(entry.panel).append(option);
    });
    const before = prompt.value;
    prompt.replaceChildren(...groups.values());
    if ([...prompt.options].some((option) => option.value === before)) prompt.value = before;
    show();
  };

  const show = () => {
    const entry = entries[prompt.value];
    shown.replaceChildren();
    asked.hidden = !entry || !entry.prompt;
    if (!entry) {
      told.textContent = "No prompt fits.";
      return;
    }
    asked.querySelector("pre").textContent = entry.prompt;
    const samples = entry.samples.filter((sample) => !state.value || sample[2] === state.value);
    told.textContent = `${entry.panel}, ${entry.id}: ${samples.length} samples`;
    let last = null;
    for (const [round, index, ended, cut, text] of samples) {
      if (round !== last) shown.append(element("h3", round ? `Round ${round}` : "Round 0, the untouched model"));
      last = round;
      const article = document.createElement("article");
      const header = document.createElement("header");
      header.append(element("span", `sample ${index}`));
      if (ended) header.append(chip(ended));
      if (cut) header.append(chip("cut by the length limit"));
      const body = element("pre", text || "(empty)");
      body.tabIndex = 0;
      article.append(header, body);
      shown.append(article);
    }
  };

  const move = (by) => {
    const to = prompt.selectedIndex + by;
    if (to < 0 || to >= prompt.options.length) return;
    prompt.selectedIndex = to;
    show();
  };

  const states = new Set(entries.flatMap((entry) => entry.samples.map((sample) => sample[2])));
  state.append(new Option("any", ""), ...[...states].filter(Boolean).sort().map((name) => new Option(name, name)));
  find.addEventListener("input", list);
  state.addEventListener("change", list);
  prompt.addEventListener("change", show);
  document.getElementById("previous").addEventListener("click", () => move(-1));
  document.getElementById("next").addEventListener("click", () => move(1));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  list();
})();
