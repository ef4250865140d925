"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const count = data.special.length;
const VISIBLE = 0.1; // share of the scale from which a negative relevance is underlined
const LEFT_OUT = 50; // one number in so many may be beyond the scale, and always one

for (const method of data.methods) {
  const bytes = Uint8Array.from(atob(method.relevances), (char) => char.charCodeAt(0));
  method.relevances = new Float32Array(bytes.buffer); // rows x tokens
}

const state = { method: 0, level: 0, special: true, held: null, hovered: null };
let units = []; // of the chosen level: {tokens, rows, label}
let unitOf = []; // of each token
let runs = []; // pieces of one unit that follow each other: {span, unit, first}

// Numbers ---------------------------------------------------------------------------------------

function chooseLevel() {
  unitOf = new Array(count);
  units = data.levels[state.level].groups.map((tokens, index) => {
    tokens.forEach((token) => { unitOf[token] = index; });
    return { tokens, rows: [], label: "" };
  });
  data.spans.forEach(([first, stop], row) => {
    const own = new Set();
    for (let token = first; token < stop; token += 1) own.add(unitOf[token]);
    own.forEach((unit) => units[unit].rows.push(row));
  });
  writeText();
}

function writeText() {
  runs = [];
  by("text").replaceChildren();
  for (const piece of data.pieces) {
    const index = unitOf[piece.first];
    const generated = piece.first >= data.start;
    const last = runs[runs.length - 1];
    const unit = units[index];
    unit.label += (unit.label && piece.gap ? " " : "") + piece.drawn.trim();
    if (last && last.unit === index && last.generated === generated) {
      last.span.textContent += piece.gap + piece.drawn;
      continue;
    }
    const span = document.createElement("span");
    span.textContent = piece.drawn;
    span.className = "piece";
    span.classList.toggle("generated", generated);
    span.classList.toggle("target", unit.rows.length > 0 && generated);
    span.dataset.run = runs.length;
    if (unit.rows.length > 0 && generated) {
      span.tabIndex = -1;
      span.setAttribute("role", "button");
    }
    if (piece.gap) by("text").append(piece.gap);
    by("text").append(span);
    runs.push({ span, unit: index, first: piece.first, generated });
  }
  const first = runs.find(({ span }) => span.classList.contains("target"));
  if (first) first.span.tabIndex = 0;
}

function chosenRows() {
  const unit = state.held ?? state.hovered;
  return unit === null ? data.spans.map((_, row) => row) : units[unit].rows;
}

function relevancesOf(rows) {
  const { relevances } = data.methods[state.method];
  const sums = new Float64Array(count);
  for (const row of rows) {
    for (let token = 0; token < count; token += 1) sums[token] += relevances[row * count + token];
  }
  return sums;
}

function scaleOf(values) {
  const sizes = values.map(Math.abs).sort((a, b) => b - a);
  if (!sizes.length || !sizes.every(Number.isFinite)) return 0;
  const usual = sizes[Math.min(Math.max(1, Math.floor(sizes.length / LEFT_OUT)), sizes.length - 1)];
  return usual ? Math.min(sizes[0], 2 * usual) : sizes[0];
}

const shown = (value) => (value >= 0 ? "+" : "") + Number(value.toPrecision(4));
const total = (values) => values.reduce((sum, value) => sum + value, 0);

// Drawing ---------------------------------------------------------------------------------------

function draw() {
  const rows = chosenRows();
  const relevances = relevancesOf(rows);
  const counted = (token) => state.special || !data.special[token];
  const sums = units.map(({ tokens }) =>
    total(tokens.filter(counted).map((token) => relevances[token])));
  const drawn = sums.filter((_, index) => units[index].tokens.some(counted));
  const scale = scaleOf(drawn);
  for (const { span, unit, first } of runs) {
    const strength = scale && counted(first) ? sums[unit] / scale : 0;
    span.style.setProperty("--strength", Math.min(Math.abs(strength), 1).toFixed(3));
    span.classList.toggle("against", strength < 0);
    span.classList.toggle("marked", strength <= -VISIBLE);
    span.classList.toggle("beyond", Math.abs(strength) > 1);
    span.classList.toggle("left-out", !counted(first));
    span.classList.toggle("chosen", unit === (state.held ?? state.hovered));
    span.classList.toggle("held", unit === state.held);
    if (span.hasAttribute("role")) {
      span.setAttribute("aria-pressed", String(unit === state.held));
    }
    span.title = shown(sums[unit]);
  }
  drawLegend(scale, drawn);
  drawValue(rows, relevances);
  drawTable(sums, counted);
}

function drawLegend(scale, values) {
  by("low").textContent = scale ? `-${Number(scale.toPrecision(3))}` : "0";
  by("high").textContent = scale ? `+${Number(scale.toPrecision(3))}` : "0";
  const largest = Math.max(0, ...values.map(Math.abs));
  by("largest").textContent =
    largest > scale && scale ? `outlined: beyond the scale, up to ${largest.toPrecision(3)}` : "";
}

function drawValue(rows, relevances) {
  const method = data.methods[state.method];
  const unit = state.held ?? state.hovered;
  const value = total(rows.map((row) => method.values[row]));
  const name = rows.length === 1 ? method.targets[rows[0]]
    : unit === null ? method.target : `${data.spans.length > 1 ? "sum for " : ""}${units[unit].label}`;
  by("value").textContent = `${name} = ${shown(value)}`;
  by("status").textContent = state.held === null ? "" : "held; Escape lets go";
  const parts = [["tokens", total(Array.from(relevances))]];
  const rest = method.ledger.length && unit === null ? method.ledger
    : [["not in tokens", total(rows.map((row) => method.decomposed[row])) - parts[0][1]]];
  parts.push(...rest);
  const beyond = value - total(parts.map(([, amount]) => amount));
  if (Math.abs(beyond) > 1e-3 * Math.max(1, Math.abs(value))) parts.push(["output", beyond]);
  const size = total(parts.map(([, amount]) => Math.abs(amount))) || 1;
  by("ledger").replaceChildren(...parts.map(([part, amount], index) => {
    const bar = document.createElement("span");
    bar.className = `bar part${index % 4}` + (amount < 0 ? " minus" : "");
    bar.style.flexGrow = Math.abs(amount) / size;
    bar.textContent = `${part} ${shown(amount)}`;
    bar.title = bar.textContent;
    return bar;
  }));
}

function drawTable(sums, counted) {
  if (!by("numbers").open) return;
  const order = units.map((_, index) => index)
    .filter((index) => units[index].tokens.some(counted))
    .sort((a, b) => Math.abs(sums[b]) - Math.abs(sums[a])).slice(0, 50);
  by("rows").replaceChildren(...order.map((index) => {
    const row = document.createElement("tr");
    for (const text of [shown(sums[index]), units[index].tokens[0], units[index].label]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      row.append(cell);
    }
    return row;
  }));
}

// What a reader does ----------------------------------------------------------------------------

function targetAt(node) {
  const span = node instanceof Element ? node.closest(".target") : null;
  return span === null ? null : runs[span.dataset.run].unit;
}

function hover(unit) {
  if (unit === state.hovered) return;
  state.hovered = unit;
  if (state.held === null) draw();
}

function hold(unit) {
  state.held = unit === state.held ? null : unit;
  draw();
}

function step(from, direction) {
  const targets = Array.from(by("text").querySelectorAll(".target"));
  const start = targets.indexOf(from);
  const own = targetAt(from);
  let at = start;
  while (targets[at] && targetAt(targets[at]) === own) at += direction;
  if (!targets[at]) return;
  from.tabIndex = -1;
  targets[at].tabIndex = 0;
  targets[at].focus();
}

by("text").addEventListener("mouseover", (event) => hover(targetAt(event.target)));
by("text").addEventListener("mouseleave", () => hover(null));
by("text").addEventListener("focusin", (event) => hover(targetAt(event.target)));
by("text").addEventListener("click", (event) => {
  const unit = targetAt(event.target);
  if (unit !== null) hold(unit);
});
document.addEventListener("keydown", (event) => {
  const on = targetAt(event.target);
  if (event.key === "Escape") {
    state.held = null;
    state.hovered = null;
    draw();
  } else if (on !== null && ["ArrowRight", "ArrowLeft"].includes(event.key)) {
    event.preventDefault();
    step(event.target, event.key === "ArrowRight" ? 1 : -1);
  } else if (on !== null && ["Enter", " "].includes(event.key)) {
    event.preventDefault();
    hold(on);
  }
});

function options(id, names, choose) {
  by(id).replaceChildren(...names.map((name, index) => new Option(name, index)));
  by(id).parentElement.hidden = names.length < 2;
  by(id).addEventListener("change", () => { choose(Number(by(id).value)); draw(); });
}

options("method", data.methods.map(({ name }) => name), (index) => { state.method = index; });
options("level", data.levels.map(({ name }) => name), (index) => {
  state.level = index;
  state.held = null;
  state.hovered = null;
  chooseLevel();
});
by("special").parentElement.hidden = !data.special.some(Boolean);
by("special").addEventListener("change", () => {
  state.special = by("special").checked;
  draw();
});
by("numbers").addEventListener("toggle", draw);

chooseLevel();
draw();
