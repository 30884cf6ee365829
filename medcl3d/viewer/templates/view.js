"use strict";
// One card per scan with three planes. Voxel (x, y, z) of a scan is value (x * H + y) * W + z of its arrays; axes
// point to the right, the front and the head of the patient.
const PLANES = [
  { name: "axial", normal: 2, across: 0, up: 1, letters: "LRPA" },
  { name: "coronal", normal: 1, across: 0, up: 2, letters: "LRIS" },
  { name: "sagittal", normal: 0, across: 1, up: 2, letters: "PAIS" },
]; // letters: left, right, bottom, top
const SIDES = { train: "training patient", test: "test patient", validation: "validation patient", "": "unassigned patient" };
const OVERLAYS = { none: "none", label: "label map", prediction: "prediction", error: "error", features: "features (PCA)" };
const LINKS = { features: "most similar features", body: "same place", none: "stay" };
const ERRORS = { missed: rgba(80, 160, 255), extra: rgba(255, 80, 80), "another structure": rgba(200, 110, 255) };
const [MISSED, EXTRA, CONFUSED] = Object.values(ERRORS);
const FAR_MM = 30; // from the points of the body
const data = JSON.parse(document.getElementById("data").textContent);
const state = { arm: 0, active: 0, overlay: "", opacity: 0.5, link: "", samples: "all", dark: 0, bright: 100, hover: null };
const { scans, arms, names } = data;

function rgba(r, g, b) { return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; }
const css = (colour) => `rgb(${colour & 255}, ${(colour >> 8) & 255}, ${(colour >> 16) & 255})`;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const hue = (number) => `hsl(${(number * 137.5 + 20) % 360} 90% 65%)`;
const paletteOf = (value) => { // distinct for neighbouring values, the same in every scan
  const h = (value * 137.5 + 100) % 360, f = (n) => { const k = (n + h / 30) % 12; return Math.round(255 * (0.58 - 0.36 * Math.max(-1, Math.min(k - 3, 9 - k, 1)))); };
  return value ? rgba(f(0), f(8), f(4)) : 0;
};
const palette = Uint32Array.from({ length: 65536 }, (_, value) => paletteOf(value));

function node(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function unpack(part) { // gzip and base64 of little-endian integers
  const text = atob(part.data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new DecompressionStream("gzip"), writer = stream.writable.getWriter();
  writer.write(bytes);
  writer.close();
  const buffer = await new Response(stream.readable).arrayBuffer();
  return part.type === "u2" ? new Uint16Array(buffer) : new Uint8Array(buffer);
}

const apply = (m, p) => [0, 1, 2].map((i) => m[i][0] * p[0] + m[i][1] * p[1] + m[i][2] * p[2] + m[i][3]);
const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
const indexOf = (scan, v) => (v[0] * scan.shape[1] + v[1]) * scan.shape[2] + v[2];
const inside = (scan, v) => v.map((value, axis) => clamp(Math.round(value), 0, scan.shape[axis] - 1));
const arm = () => arms[state.arm] || {};

// The same place in another scan: the same world mm in a shared frame, otherwise the same body coordinates.
function samePlace(from, to, v) {
  if (from.frame === to.frame) return apply(to.fromWorld, apply(from.toWorld, v));
  return apply(to.fromBody, apply(from.toBody, v));
}

// The point of another scan with the most similar features, its cosine, and its distance from the same place; null
// outside the body.
function mostSimilar(i, j, v) {
  const points = arm().points[i], table = arm().matches[i][j], target = arm().points[j];
  let best = 0, least = Infinity;
  for (let n = 0; n < points.length / 3; n++) {
    let d = 0;
    for (let axis = 0; axis < 3; axis++) d += ((points[3 * n + axis] - v[axis]) * scans[i].spacing[axis]) ** 2;
    if (d < least) [best, least] = [n, d];
  }
  if (least > FAR_MM ** 2) return null;
  const found = Array.from(target.subarray(3 * table.index[best], 3 * table.index[best] + 3));
  const place = samePlace(scans[i], scans[j], Array.from(points.subarray(3 * best, 3 * best + 3)));
  const mm = distance(apply(scans[j].toWorld, found), apply(scans[j].toWorld, place));
  return { at: found, cosine: table.cosine[best] / 127 - 1, mm, place };
}

function move(i, v) {
  state.active = i;
  scans[i].at = inside(scans[i], v);
  scans.forEach((scan, j) => {
    scan.match = null;
    if (j === i) return;
    const place = samePlace(scans[i], scan, scans[i].at);
    if (arm().matches && state.link === "features") scan.match = mostSimilar(i, j, scans[i].at);
    if (scan.match) scan.at = inside(scan, scan.match.at);
    else if (state.link === "body") scan.at = inside(scan, place);
  });
  redraw();
}

// A slice as a canvas with one pixel per voxel; colour(index) is 0 for nothing.
function raster(shape, plane, level, colour) {
  const [nx, ny] = [shape[plane.across], shape[plane.up]], strides = [shape[1] * shape[2], shape[2], 1];
  const image = new ImageData(nx, ny), out = new Uint32Array(image.data.buffer);
  for (let y = 0, o = 0; y < ny; y++) {
    let index = level * strides[plane.normal] + (ny - 1 - y) * strides[plane.up];
    for (let x = 0; x < nx; x++, index += strides[plane.across]) out[o++] = colour(index);
  }
  const canvas = node("canvas", { width: nx, height: ny });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function greys(scan) {
  const [low, high] = scan.window, width = high - low;
  const dark = low + (width * state.dark) / 100, bright = Math.max(dark + 1, low + (width * state.bright) / 100);
  return Uint32Array.from({ length: 256 }, (_, n) => { const g = clamp(Math.round((255 * (n - dark)) / (bright - dark)), 0, 255); return rgba(g, g, g); });
}

// The overlay of a scan: its grid, voxels of the shown grid per cell, and a colour per index; null if it has none.
function overlayOf(i) {
  const scan = scans[i], predicted = arm().predictions && arm().predictions[i], whole = { shape: scan.shape, ratio: [1, 1, 1] };
  if (state.overlay === "label" && scan.label) return { ...whole, colour: (n) => palette[scan.label[n]] };
  if (state.overlay === "prediction" && predicted) return { ...whole, colour: (n) => palette[predicted[n]] };
  if (state.overlay === "error" && predicted && scan.label) {
    const classes = new Set(arm().classes);
    return { ...whole, colour: (n) => {
      const truth = classes.has(scan.label[n]) ? scan.label[n] : 0;
      return truth === predicted[n] ? 0 : !predicted[n] ? MISSED : !truth ? EXTRA : CONFUSED;
    } };
  }
  if (state.overlay === "features" && arm().colours) {
    const { shape, ratio, values } = arm().colours[i];
    return { shape, ratio, smooth: true, colour: (n) => values[3 * n] ? rgba(values[3 * n], values[3 * n + 1], values[3 * n + 2]) : 0 };
  }
  return null;
}

function draw(i, plane, canvas) {
  const scan = scans[i], dense = window.devicePixelRatio || 1, nx = scan.shape[plane.across], ny = scan.shape[plane.up];
  const width = Math.max(1, Math.round(canvas.clientWidth * dense)), height = Math.max(1, Math.round(canvas.clientHeight * dense));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), sx = width / nx, sy = height / ny, level = scan.at[plane.normal], grey = greys(scan);
  const at = (v) => [(v[plane.across] + 0.5) * sx, height - (v[plane.up] + 0.5) * sy];
  context.imageSmoothingQuality = "high";
  context.imageSmoothingEnabled = true;
  context.drawImage(raster(scan.shape, plane, level, (n) => grey[scan.voxels[n]]), 0, 0, width, height);
  const overlay = overlayOf(i);
  if (overlay) {
    const [rx, ry, rz] = [plane.across, plane.up, plane.normal].map((axis) => overlay.ratio[axis]);
    const [cx, cy] = [overlay.shape[plane.across], overlay.shape[plane.up]];
    const slice = raster(overlay.shape, plane, clamp(Math.round(level / rz), 0, overlay.shape[plane.normal] - 1), overlay.colour);
    context.imageSmoothingEnabled = Boolean(overlay.smooth);
    context.globalAlpha = state.opacity;
    context.drawImage(slice, (0.5 - rx / 2) * sx, height - (0.5 - ry / 2 + cy * ry) * sy, cx * rx * sx, cy * ry * sy);
    context.globalAlpha = 1;
  }
  drawSamples(context, i, plane, level, at, dense);
  drawCross(context, scan, plane, at(scan.at), width, height, dense);
  if (scan.match && scan.at.every((value, axis) => value === scan.match.at[axis])) ring(context, at(scan.match.at), 6 * dense, "#ffd84d", 2 * dense);
  if (scan.match && Math.abs(scan.match.place[plane.normal] - level) < 1) ring(context, at(scan.match.place), 3 * dense, "#ff7ad9", 2 * dense);
}

function ring(context, [x, y], radius, colour, lineWidth, filled = false) {
  Object.assign(context, { strokeStyle: colour, fillStyle: colour, lineWidth });
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  if (filled) context.fill(); else context.stroke();
}

function drawCross(context, scan, plane, [x, y], width, height, dense) {
  Object.assign(context, { strokeStyle: "rgba(124, 192, 245, .65)", lineWidth: dense });
  context.beginPath();
  context.moveTo(0, y); context.lineTo(width, y); context.moveTo(x, 0); context.lineTo(x, height);
  context.stroke();
  Object.assign(context, { fillStyle: "#ffd9a0", font: `${11 * dense}px system-ui, sans-serif`, textBaseline: "middle", textAlign: "center" });
  const [left, right, bottom, top] = plane.letters, edge = 8 * dense;
  [[left, edge, height / 2], [right, width - edge, height / 2], [bottom, width / 2, height - edge], [top, width / 2, edge]].forEach(([text, a, b]) => written(context, text, a, b, dense));
}

function written(context, text, x, y, dense) { // readable on any slice
  Object.assign(context, { strokeStyle: "rgba(0, 0, 0, .8)", lineWidth: 3 * dense });
  context.strokeText(text, x, y);
  context.fillText(text, x, y);
}

// Boxes of views: solid if the slice is inside, dashed outlines otherwise. Points: filled in the slice, else hollow.
function drawSamples(context, i, plane, level, at, dense) {
  const wanted = (item) => item.scan === i && (state.samples === "all" || item.sample === Number(state.samples));
  for (const view of (arm().views || []).filter(wanted)) {
    const cut = view.low[plane.normal] <= level && level <= view.high[plane.normal];
    const [x0, y0] = at(view.low), [x1, y1] = at(view.high);
    Object.assign(context, { strokeStyle: hue(view.sample), fillStyle: hue(view.sample), globalAlpha: cut ? 1 : 0.35, lineWidth: 1.5 * dense });
    context.setLineDash(cut ? [] : [4 * dense, 4 * dense]);
    context.strokeRect(x0, y1, x1 - x0, y0 - y1);
    Object.assign(context, { font: `${10 * dense}px system-ui, sans-serif`, textAlign: "left", textBaseline: "top" });
    const line = view.name.charCodeAt(view.name.length - 1) % 2 ? 0 : 1; // names of overlapping views
    if (cut) written(context, view.name, x0 + 3 * dense, y1 + (2 + 11 * line) * dense, dense);
  }
  context.setLineDash([]);
  context.globalAlpha = 1;
  for (const group of (arm().samplePoints || []).filter(wanted)) {
    for (const point of group.at) {
      const near = Math.abs(point[plane.normal] - level) <= 0.5;
      if (near || Math.abs(point[plane.normal] - level) < 4) ring(context, at(point), 2.5 * dense, hue(group.sample), dense, near);
    }
  }
}

const nameOf = (value) => names[value] || `value ${value}`;
function structure(title, value) {
  if (!value) return `${title}: background`;
  return node("span", {}, `${title}:`, node("span", { className: "swatch", style: `background: ${css(palette[value])}` }), node("b", { textContent: nameOf(value) }));
}

// One line on the place under the pointer, or at the crosshair.
function read(i) {
  const scan = scans[i], hovered = state.hover && state.hover.scan === i, v = hovered ? state.hover.at : scan.at, n = indexOf(scan, v);
  const [x, y, z] = apply(scan.toWorld, v).map((value) => value.toFixed(1)), [low, high] = scan.range;
  const parts = [`${hovered ? "pointer" : "crosshair"} at `, node("b", { textContent: `${x}, ${y}, ${z} mm` }), ` · intensity ${(low + (scan.voxels[n] / 255) * (high - low)).toFixed(2)}`];
  if (scan.label) parts.push(" · ", structure("label", scan.label[n]));
  if (arm().predictions) parts.push(" · ", structure("prediction", arm().predictions[i][n]));
  if (scan.match && !hovered) parts.push(` · most similar: cosine ${scan.match.cosine.toFixed(2)}, ${scan.match.mm.toFixed(0)} mm from the same place`);
  scan.read.replaceChildren(...parts);
}

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    scans.forEach((scan, i) => {
      scan.card.classList.toggle("active", i === state.active);
      scan.planes.forEach(({ plane, canvas, slider }) => {
        slider.value = scan.at[plane.normal];
        draw(i, plane, canvas);
      });
      read(i);
    });
    document.body.dataset.drawn = Number(document.body.dataset.drawn || 0) + 1;
  });
}

function voxelAt(scan, plane, canvas, event) {
  const box = canvas.getBoundingClientRect(), v = [...scan.at];
  v[plane.across] = ((event.clientX - box.left) / box.width) * scan.shape[plane.across] - 0.5;
  v[plane.up] = (1 - (event.clientY - box.top) / box.height) * scan.shape[plane.up] - 0.5;
  return inside(scan, v);
}

function step(i, plane, by) {
  const v = [...scans[i].at];
  v[plane.normal] += by;
  move(i, v);
}

function planeOf(i, plane) {
  const scan = scans[i], size = [0, 1, 2].map((axis) => scan.shape[axis] * scan.spacing[axis]), aspect = size[plane.across] / size[plane.up];
  const canvas = node("canvas", { tabIndex: 0, style: `aspect-ratio: ${aspect}` });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${scan.name}, ${plane.name} plane`);
  const slider = node("input", { type: "range", min: 0, max: scan.shape[plane.normal] - 1, title: `${plane.name} slice` });
  slider.setAttribute("aria-label", `${scan.name}, ${plane.name} slice`);
  slider.oninput = () => step(i, plane, slider.value - scan.at[plane.normal]);
  canvas.onpointerdown = (event) => { if (event.isTrusted) canvas.setPointerCapture(event.pointerId); move(i, voxelAt(scan, plane, canvas, event)); };
  canvas.onpointermove = (event) => {
    state.hover = event.buttons ? null : { scan: i, at: voxelAt(scan, plane, canvas, event) };
    if (event.buttons) move(i, voxelAt(scan, plane, canvas, event)); else read(i);
  };
  canvas.onpointerleave = () => { state.hover = null; read(i); };
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); step(i, plane, event.deltaY < 0 ? 1 : -1); }, { passive: false });
  canvas.onkeydown = (event) => {
    const by = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
    if (by) { event.preventDefault(); step(i, plane, by); }
  };
  scan.planes.push({ plane, canvas, slider });
  return node("div", { className: "plane", style: `--mm: ${size[plane.across]}; --shape: ${aspect}` }, canvas, slider);
}

function cardOf(i) {
  const scan = scans[i], size = scan.shape.map((n, axis) => n * scan.spacing[axis]);
  Object.assign(scan, { at: scan.shape.map((n) => n >> 1), match: null, planes: [], read: node("p", { className: "read" }) });
  const patient = scan.patient === scan.name ? "" : ` ${scan.patient}`, modality = scan.modality ? `, ${scan.modality}` : "";
  const enlarge = node("button", { textContent: "enlarge", onclick: () => enlarged(i) });
  const about = `${SIDES[scan.side]}${patient}${modality}, ${scan.shape.join(" × ")} voxels of ${scan.spacing.map((mm) => mm.toFixed(1)).join(" × ")} mm`;
  const planes = node("div", { className: "planes", style: `--ratio: ${(2 * size[0] + size[1]) / Math.max(size[1], size[2])}` }, ...PLANES.map((plane) => planeOf(i, plane)));
  scan.card = node("section", {}, node("h2", {}, node("span", {}, scan.name, " ", node("small", { textContent: about })), enlarge), planes, scan.read);
  return scan.card;
}

function enlarged(i) {
  scans.forEach((scan, j) => scan.card.classList.toggle("large", i === j));
  redraw();
}

function chosen(title, key, options, changed) {
  const select = node("select", { onchange: () => { state[key] = select.value; changed(); } }, ...Object.entries(options).map(([value, text]) => node("option", { value, textContent: text })));
  if (!(state[key] in options)) state[key] = Object.keys(options)[0];
  select.value = state[key];
  return node("label", {}, title, select);
}

function ranged(title, key, high, changed) {
  const input = node("input", { type: "range", min: 0, max: high, step: high / 100, value: state[key] });
  input.oninput = () => { state[key] = Number(input.value); changed(); };
  return node("label", {}, title, input);
}

// The controls that the present arm needs.
function controls() {
  const can = { none: true, label: scans.some((scan) => scan.label), prediction: arm().predictions, features: arm().colours };
  can.error = can.prediction && can.label;
  if (!can[state.overlay]) state.overlay = ["error", "prediction", "features", "label", "none"].find((key) => can[key]);
  const overlays = Object.fromEntries(Object.entries(OVERLAYS).filter(([key]) => can[key]));
  const links = Object.fromEntries(Object.entries(LINKS).filter(([key]) => key !== "features" || arm().matches));
  const made = [chosen("overlay", "overlay", overlays, () => { legend(); redraw(); }), ranged("opacity", "opacity", 1, redraw)];
  if (scans.length > 1) made.push(chosen("other scans go to", "link", links, () => { legend(); move(state.active, scans[state.active].at); }));
  if (arm().samples && arm().samples.length) made.push(chosen("views of", "samples", { all: "all samples", ...Object.fromEntries(arm().samples.map((number, k) => [k, `sample ${number}`])), none: "no sample" }, redraw));
  made.push(ranged("darkest", "dark", 100, redraw), ranged("brightest", "bright", 100, redraw));
  document.getElementById("controls").replaceChildren(...made);
  document.getElementById("arm-facts").textContent = (arm().facts || []).join("; ");
  document.querySelectorAll("#arms button").forEach((button, k) => button.setAttribute("aria-pressed", String(k === state.arm)));
  legend();
}

function legend() {
  const entry = (colour, text) => [node("span", { className: "swatch", style: `background: ${colour}` }), text], parts = [];
  if (state.overlay === "error") Object.entries(ERRORS).forEach(([text, colour]) => parts.push(...entry(css(colour), text)));
  if (state.overlay === "features") parts.push("Similar colours: similar features (three principal components as red, green and blue, over all shown scans).");
  if (["label", "prediction"].includes(state.overlay)) Object.entries(names).slice(0, 12).forEach(([value, text]) => parts.push(...entry(css(palette[value]), text)));
  if (["label", "prediction"].includes(state.overlay) && Object.keys(names).length > 12) parts.push(" … the name under the pointer is below each scan.");
  if (arm().matches && state.link === "features") parts.push(...entry("#ffd84d", "most similar features"), ...entry("#ff7ad9", "same place in world or body coordinates (in or beside the slice)"));
  document.getElementById("legend").replaceChildren(...parts);
}

async function start() {
  for (const scan of scans) {
    scan.voxels = await unpack(scan.voxels);
    scan.label = scan.label && await unpack(scan.label);
  }
  for (const one of arms) {
    if (one.predictions) one.predictions = await Promise.all(one.predictions.map(unpack));
    if (!one.colours) continue;
    for (const colour of one.colours) colour.values = await unpack(colour);
    one.points = await Promise.all(one.points.map(unpack));
    for (const table of one.matches.flat().filter(Boolean)) [table.index, table.cosine] = [await unpack(table.index), await unpack(table.cosine)];
  }
  document.getElementById("scans").append(...scans.map((_, i) => cardOf(i)));
  if (arms.length > 1) document.getElementById("arms").append(...arms.map((one, k) => node("button", { textContent: one.name, onclick: () => { state.arm = k; controls(); move(state.active, scans[state.active].at); } })));
  controls();
  enlarged(0);
  move(0, scans[0].at);
  new ResizeObserver(redraw).observe(document.getElementById("scans"));
  document.getElementById("state").textContent = "";
  document.body.dataset.ready = "1";
}

start().catch((error) => {
  document.getElementById("state").textContent = `This page could not be shown: ${error}. It needs a browser of 2023 or later (DecompressionStream).`;
  throw error;
});
