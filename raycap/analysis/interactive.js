// Draws the points of DATA, which interactive.py writes in front of this script, as the controls say.

const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross", "star", "x", "triangle-down"];
const chosen = {};

const points = () => DATA.points[chosen.points];
const isNumber = (value) => typeof value === "number";
const escaped = (value) => String(value).replaceAll("&", "&amp;").replaceAll("<", "&lt;");

// Values of a quantity, one per point; those of bits depend on the reading.
function values(name) {
  const set = points();
  return set.bits[name] ? set.bits[name][chosen.reading] : set.columns[name];
}

const quantities = () => [...Object.keys(points().bits), ...Object.keys(points().columns)];
const numeric = () => quantities().filter((name) => values(name).some(isNumber));

// Different values of a quantity, in order.
function levels(name) {
  const found = [...new Set(values(name).filter((value) => value !== null))];
  return found.sort((a, b) => (isNumber(a) && isNumber(b) ? a - b : String(a).localeCompare(String(b))));
}

function addSelect(name, title, options) {
  const label = document.createElement("label");
  const select = document.createElement("select");
  select.id = name;
  label.style.marginRight = "1rem";
  label.append(`${title} `, select);
  document.getElementById("controls").append(label);
  select.addEventListener("change", () => {
    chosen[name] = select.value;
    update();
  });
  setOptions(name, options);
}

// Replace the options of a control; keep its choice if it is still among them.
function setOptions(name, options) {
  const select = document.getElementById(name);
  if (!options.includes(chosen[name])) chosen[name] = options[0];
  select.replaceChildren(...options.map((text) => new Option(text, text, false, text === chosen[name])));
}

function hoverText(index) {
  const set = points();
  const lines = [`<b>${escaped(set.label[index])}</b>`, `trial ${set.trial_id[index]}`];
  for (const name of [...DATA.settings, ...set.losses, ...Object.keys(set.bits)]) {
    const value = values(name)[index];
    if (value !== null) lines.push(`${escaped(name)}: ${escaped(value)}`);
  }
  return lines.join("<br>");
}

// One trace per pair of a colour and a marker. Evaluations of a trial are joined by a line.
function traces() {
  const [x, y, colour, marker] = [chosen.x, chosen.y, chosen.colour, chosen.marker].map((n) => (n === "none" ? null : values(n)));
  const shades = colour ? levels(chosen.colour) : [null];
  const markers = marker ? levels(chosen.marker) : [null];
  const scaled = shades.length > DATA.shades.length;
  const trial = points().trial_id;
  const byPair = new Map();
  x.forEach((_, index) => {
    const pair = JSON.stringify([scaled || !colour ? null : colour[index], marker ? marker[index] : null]);
    if (!byPair.has(pair)) byPair.set(pair, []);
    byPair.get(pair).push(index);
  });
  const order = (pair) => JSON.parse(pair).map((value, place) => [shades, markers][place].indexOf(value));
  const sorted = [...byPair.keys()].sort((a, b) => order(a)[0] - order(b)[0] || order(a)[1] - order(b)[1]);
  return sorted.map((pair) => {
    const [shade, symbol] = order(pair);
    const joined = chosen.points !== "end of training";
    // A null between two trials ends the line of the first.
    const rows = byPair.get(pair).flatMap((row, place, all) =>
      joined && place && trial[all[place - 1]] !== trial[row] ? [null, row] : [row]);
    const at = (column) => rows.map((row) => (row === null ? null : column[row]));
    const names = JSON.parse(pair).filter((value) => value !== null);
    return {
      x: at(x), y: at(y), name: names.map(escaped).join(", "), hoverinfo: "text",
      hovertext: rows.map((row) => (row === null ? "" : hoverText(row))),
      type: "scatter", mode: joined ? "lines+markers" : "markers", line: { width: 1 },
      marker: {
        size: joined ? 5 : 10, opacity: 0.85, symbol: SYMBOLS[Math.max(symbol, 0) % SYMBOLS.length],
        color: scaled ? at(colour) : shadeOf(shade, shades),
        ...(scaled ? { colorscale: "Viridis", showscale: true, colorbar: { title: { text: chosen.colour } } } : {}),
      },
    };
  });
}

function shadeOf(index, shades) {
  if (index < 0 || !shades.every(isNumber)) return DATA.colours[Math.max(index, 0) % DATA.colours.length];
  return DATA.shades[Math.round((index * (DATA.shades.length - 1)) / Math.max(shades.length - 1, 1))];
}

function axis(name, scale) {
  return { title: { text: name }, type: scale, automargin: true, zeroline: false };
}

function update() {
  setOptions("x", numeric());
  setOptions("y", numeric());
  setOptions("colour", ["none", ...quantities()]);
  setOptions("marker", ["none", ...quantities().filter((name) => levels(name).length <= SYMBOLS.length)]);
  const layout = {
    xaxis: axis(chosen.x, chosen.xscale), yaxis: axis(chosen.y, chosen.yscale), hovermode: "closest",
    hoverlabel: { align: "left" }, margin: { t: 20 }, showlegend: chosen.colour !== "none" || chosen.marker !== "none",
    legend: { title: { text: [chosen.colour, chosen.marker].filter((name) => name !== "none").map(escaped).join(", ") } },
  };
  // Results leave the page only if its reader saves the picture: no button uploads them.
  const config = { responsive: true, displaylogo: false, plotlyServerURL: "", modeBarButtonsToRemove: ["sendChartToCloud"] };
  Plotly.react("plot", traces(), layout, config);
  const hidden = values(chosen.x).filter((x, index) => {
    const y = values(chosen.y)[index];
    return x === null || y === null || (chosen.xscale === "log" && x <= 0) || (chosen.yscale === "log" && y <= 0);
  }).length;
  document.getElementById("missing").textContent = hidden
    ? `${hidden} points are not drawn: they lack a value, or it is not positive and the axis is logarithmic.` : "";
}

Object.assign(chosen, {
  points: "end of training", reading: DATA.reading, x: "num_params", xscale: "log", y: "learned_bits", yscale: "log",
  colour: DATA.varied[0] ?? "none", marker: DATA.varied[1] ?? "none",
});
addSelect("points", "points", Object.keys(DATA.points));
addSelect("reading", "reading", DATA.readings);
addSelect("x", "horizontal", numeric());
addSelect("xscale", "scale", ["log", "linear"]);
addSelect("y", "vertical", numeric());
addSelect("yscale", "scale", ["log", "linear"]);
addSelect("colour", "colour", ["none", ...quantities()]);
addSelect("marker", "marker", ["none", ...quantities()]);
update();
