"use strict";
// Three planes through the volumes of this page. Nothing is loaded: every volume is a gzipped NIfTI file inside.
(() => {
  const setup = JSON.parse(document.getElementById("viewer-setup").textContent);
  const byId = (id) => document.getElementById(`viewer-${id}`);
  // Array axes are RAS+. Axis cut, axis down the screen, axis across; both screen axes run against the array's.
  const PLANES = {
    axial: {cut: 2, down: 1, across: 0, sides: ["R", "L", "A", "P"]},
    coronal: {cut: 1, down: 2, across: 0, sides: ["R", "L", "S", "I"]},
    sagittal: {cut: 0, down: 2, across: 1, sides: ["A", "P", "S", "I"]},
  };
  const state = {volumes: null, cross: [0, 0, 0], zoom: 1, errors: null, layers: new Set(), kinds: new Set()};
  const listeners = [];

  async function unzip(id) {
    const raw = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  function readNifti(buffer) {
    const head = new DataView(buffer);
    const dims = [1, 2, 3].map((i) => head.getInt16(40 + 2 * i, true));
    const spacing = [1, 2, 3].map((i) => head.getFloat32(76 + 4 * i, true));
    const rows = [0, 1, 2].map((r) => [0, 1, 2, 3].map((c) => head.getFloat32(280 + 16 * r + 4 * c, true)));
    const data = head.getInt16(70, true) === 2 ? new Uint8Array(buffer, 352) : new Int16Array(buffer, 352);
    return {dims, spacing, rows, data, buffer};
  }

  const at = (dims, x, y, z) => x + dims[0] * (y + dims[1] * z);
  const classAt = (key, index) => state.volumes[key].data[index];
  const nameOf = (value) => value < 0 ? "unknown" : setup.labels[value] ?? `class ${value}`;

  // 1 false alarm, 2 missed, 3 wrong structure; where the label is unknown (-1) nothing is an error.
  function judge() {
    const said = state.volumes[byId("judged").value];
    const label = state.volumes.label;
    const errors = new Uint8Array(label.data.length);
    const {dims} = label;
    const profile = dims.map((n) => new Uint32Array(n));
    const counts = [0, 0, 0, 0];
    if (said) {
      for (let i = 0, z = 0; z < dims[2]; z++) for (let y = 0; y < dims[1]; y++) for (let x = 0; x < dims[0]; x++, i++) {
        const truth = label.data[i], mine = said.data[i];
        if (truth === mine || truth < 0) continue;
        const kind = truth === 0 ? 1 : mine === 0 ? 2 : 3;
        errors[i] = kind;
        counts[kind]++;
        profile[0][x]++; profile[1][y]++; profile[2][z]++;
      }
    }
    state.errors = {data: errors, profile, counts};
    const ml = label.spacing.reduce((a, b) => a * b, 1) / 1000;
    setup.errors.forEach((error, i) => {
      const volume = counts[i + 1] * ml;
      document.getElementById(`amount-${error.key}`).textContent = said ? `${volume.toFixed(volume < 10 ? 2 : 1)} ml` : "";
    });
  }

  // The slice with most of what is looked for, then the fullest column in it, then the voxel: always one that counts.
  function go() {
    const {dims, data: truth} = state.volumes.label;
    const value = byId("goto").value === "" ? null : Number(byId("goto").value);
    const said = state.volumes[byId("judged").value]?.data ?? truth;
    const wrong = (i) => state.errors.data[i] > 0 && (value === null || truth[i] === value || said[i] === value);
    const inside = (i) => value === null ? truth[i] > 0 : truth[i] === value || said[i] === value;
    for (const wanted of [wrong, inside]) {
      const perZ = new Uint32Array(dims[2]);
      for (let i = 0, z = 0; z < dims[2]; z++) for (let n = 0; n < dims[0] * dims[1]; n++, i++) if (wanted(i)) perZ[z]++;
      const z = perZ.indexOf(Math.max(...perZ));
      if (!perZ[z]) continue;
      const perX = new Uint32Array(dims[0]);
      for (let y = 0; y < dims[1]; y++) for (let x = 0; x < dims[0]; x++) if (wanted(at(dims, x, y, z))) perX[x]++;
      const x = perX.indexOf(Math.max(...perX));
      const column = [...Array(dims[1]).keys()].filter((y) => wanted(at(dims, x, y, z)));
      return move([x, column[column.length >> 1], z]);
    }
    return move(dims.map((n) => n >> 1));
  }

  function move(cross) {
    const {dims} = state.volumes.label;
    state.cross = cross.map((v, i) => Math.min(dims[i] - 1, Math.max(0, Math.round(v))));
    draw();
  }

  const PALETTE = setup.errors.map(({colour}) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)));
  const EDGES = {label: 2.6};

  // The box of the labelled structures with a margin fills the planes at zoom 1, all at one scale.
  const MARGIN_MM = 20;

  function box() {
    const {dims} = state.volumes.label;
    const low = [...dims], high = [-1, -1, -1];
    const {data} = state.volumes.label;
    for (let i = 0; i < data.length; i++) if (data[i] > 0) {
      const here = [i % dims[0], Math.floor(i / dims[0]) % dims[1], Math.floor(i / (dims[0] * dims[1]))];
      for (let a = 0; a < 3; a++) { low[a] = Math.min(low[a], here[a]); high[a] = Math.max(high[a], here[a]); }
    }
    return high[0] < 0 ? {low: [0, 0, 0], high: dims.map((n) => n - 1)} : {low, high};
  }

  function scales() {
    const {dims, spacing} = state.volumes.label, {low, high} = state.box;
    let fit = Infinity, whole = Infinity;
    for (const plane of document.querySelectorAll("#viewer-planes .plane")) {
      const {down, across} = PLANES[plane.dataset.plane], canvas = plane.querySelector(".view");
      if (!canvas.clientWidth) continue;
      for (const [axis, room] of [[across, canvas.clientWidth], [down, canvas.clientHeight]]) {
        const all = dims[axis] * spacing[axis];
        whole = Math.min(whole, room / all);
        fit = Math.min(fit, room / Math.min(all, (high[axis] + 1 - low[axis]) * spacing[axis] + 2 * MARGIN_MM));
      }
    }
    return {fit, whole};
  }

  function draw() {
    const {fit, whole} = scales();
    state.zoom = Math.max(state.zoom, whole / fit);
    for (const plane of document.querySelectorAll("#viewer-planes .plane")) drawPlane(plane, fit * state.zoom);
    const {dims, rows} = state.volumes.label;
    const index = at(dims, ...state.cross);
    const mm = rows.map((r) => Math.round(r[0] * state.cross[0] + r[1] * state.cross[1] + r[2] * state.cross[2] + r[3]));
    const place = mm.map((v, i) => `${(v < 0 ? "LPI" : "RAS")[i]} ${Math.abs(v)}`).join(", ");
    const said = setup.layers.filter(({key}) => state.volumes[key]).map((layer) => [layer.name, nameOf(classAt(layer.key, index))]);
    const parts = [["At the cross", `${place} mm`], ...said].map(([name, text]) => {
      const span = document.createElement("span"), strong = document.createElement("b");
      strong.textContent = text;
      span.append(`${name}: `, strong);
      return span;
    });
    byId("readout").replaceChildren(...parts);
    for (const listener of listeners) listener();
  }

  function drawPlane(plane, scale) {
    const {cut, down, across, sides} = PLANES[plane.dataset.plane];
    const {dims, spacing} = state.volumes.label;
    const width = dims[across], height = dims[down];
    const slider = plane.querySelector("input"), canvas = plane.querySelector(".view");
    if (!canvas.clientWidth) return;
    slider.max = dims[cut] - 1;
    slider.value = state.cross[cut];
    plane.querySelector("output").textContent = `${state.cross[cut] + 1} of ${dims[cut]}`;
    drawProfile(plane.querySelector(".profile"), state.errors.profile[cut], state.cross[cut]);

    const ratio = devicePixelRatio || 1;
    const wide = Math.max(1, canvas.clientWidth), high = Math.max(1, canvas.clientHeight);
    canvas.width = wide * ratio;
    canvas.height = high * ratio;
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    g.fillStyle = "#000";
    g.fillRect(0, 0, wide, high);

    const step = [0, 0, 0].map((_, i) => i === 0 ? 1 : i === 1 ? dims[0] : dims[0] * dims[1]);
    const start = state.cross[cut] * step[cut];
    const index = (r, c) => start + (height - 1 - r) * step[down] + (width - 1 - c) * step[across];
    const px = scale * spacing[across], py = scale * spacing[down];
    const crossC = width - 1 - state.cross[across] + 0.5, crossR = height - 1 - state.cross[down] + 0.5;
    // In the middle: the structures, and once zoomed in the cross, as far as the picture reaches.
    const centre = (axis, cross) =>
      state.zoom > 1 ? cross : dims[axis] - (state.box.low[axis] + state.box.high[axis] + 1) / 2;
    const offset = (size, room, middle) =>
      size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, room / 2 - middle));
    const ox = offset(width * px, wide, centre(across, crossC) * px);
    const oy = offset(height * py, high, centre(down, crossR) * py);
    canvas.geometry = {ox, oy, px, py, width, height, down, across};

    const grey = new ImageData(width, height), over = new ImageData(width, height);
    const table = greys();
    const image = state.volumes.image.data, errors = state.errors.data;
    for (let r = 0, n = 0; r < height; r++) for (let c = 0; c < width; c++, n += 4) {
      const i = index(r, c);
      grey.data[n] = grey.data[n + 1] = grey.data[n + 2] = table[image[i]];
      grey.data[n + 3] = 255;
      const kind = errors[i];
      if (kind && state.kinds.has(setup.errors[kind - 1].key)) {
        [over.data[n], over.data[n + 1], over.data[n + 2]] = PALETTE[kind - 1];
        over.data[n + 3] = 185;
      }
    }
    paint(g, grey, ox, oy, width * px, height * py, true);
    paint(g, over, ox, oy, width * px, height * py, false);

    for (const layer of setup.layers) {
      const mask = state.volumes[layer.key];
      if (!mask || !state.layers.has(layer.key)) continue;
      const path = outline(mask.data, index, width, height, ox, oy, px, py, layer.role === "teacher");
      g.strokeStyle = "rgba(0,0,0,.45)";
      g.lineWidth = (EDGES[layer.key] ?? 1.6) + 1.4;
      g.stroke(path);
      g.strokeStyle = layer.colour;
      g.lineWidth = EDGES[layer.key] ?? 1.6;
      g.stroke(path);
    }
    decorate(g, wide, high, ox + crossC * px, oy + crossR * py, sides, scale);
  }

  // Edges between voxels of different class; a teacher's every other one, so that it reads as dotted.
  function outline(data, index, width, height, ox, oy, px, py, dotted) {
    const path = new Path2D();
    const shown = (r, c) => r < 0 || c < 0 || r >= height || c >= width ? 0 : Math.max(0, data[index(r, c)]);
    for (let r = 0; r <= height; r++) for (let c = 0; c <= width; c++) {
      const here = shown(r, c);
      const x = ox + c * px, y = oy + r * py;
      const skip = dotted && (r + c) % 2;
      if (!skip && here !== shown(r, c - 1)) { path.moveTo(x, y); path.lineTo(x, y + py); }
      if (!skip && here !== shown(r - 1, c)) { path.moveTo(x, y); path.lineTo(x + px, y); }
    }
    return path;
  }

  const scratch = document.createElement("canvas");
  function paint(g, pixels, x, y, width, height, smooth) {
    scratch.width = pixels.width;
    scratch.height = pixels.height;
    scratch.getContext("2d").putImageData(pixels, 0, 0);
    g.imageSmoothingEnabled = smooth;
    g.drawImage(scratch, x, y, width, height);
  }

  function greys() {
    const gain = 2 ** (Number(byId("contrast").value) / 40), shift = 1.27 * Number(byId("brightness").value);
    return Uint8ClampedArray.from({length: 256}, (_, v) => (v - 127.5) * gain + 127.5 + shift);
  }

  function decorate(g, wide, high, x, y, sides, scale) {
    g.strokeStyle = "rgba(255,255,255,.55)";
    g.lineWidth = 1;
    g.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - 9, y], [x + 9, y, wide, y], [x, 0, x, y - 9], [x, y + 9, x, high]]) {
      g.moveTo(x0, y0); g.lineTo(x1, y1);
    }
    g.stroke();
    g.font = "600 13px system-ui, sans-serif";
    g.lineJoin = "round";
    const write = (text, tx, ty, align) => {
      g.textAlign = align;
      g.lineWidth = 3; g.strokeStyle = "rgba(0,0,0,.7)"; g.strokeText(text, tx, ty);
      g.fillStyle = "#fff"; g.fillText(text, tx, ty);
    };
    write(sides[0], 6, high / 2 + 4, "left");
    write(sides[1], wide - 6, high / 2 + 4, "right");
    write(sides[2], wide / 2, 16, "center");
    write(sides[3], wide / 2, high - 7, "center");
    const ruler = [100, 50, 20, 10, 5, 2, 1].find((mm) => mm * scale <= wide / 3) ?? 1;
    g.fillStyle = "#fff";
    g.fillRect(wide - 8 - ruler * scale, high - 10, ruler * scale, 2);
    write(`${ruler} mm`, wide - 8, high - 15, "right");
  }

  // Above each slider: how many voxels are wrong on each slice.
  function drawProfile(canvas, counts, here) {
    const wide = Math.max(1, canvas.clientWidth), high = Math.max(1, canvas.clientHeight);
    const ratio = devicePixelRatio || 1;
    canvas.width = wide * ratio;
    canvas.height = high * ratio;
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    // A slider's thumb does not reach the ends of its track.
    const inset = 8, most = Math.max(1, ...counts), room = wide - 2 * inset;
    counts.forEach((count, i) => {
      const x = inset + (counts.length > 1 ? i / (counts.length - 1) : 0.5) * room;
      const bar = Math.max(1, room / counts.length - 0.5), tall = count / most * high;
      g.fillStyle = i === here ? "#1c2024" : "#a0a4ab";
      g.fillRect(x - bar / 2, high - tall, bar, tall);
    });
  }

  function point(event) {
    const canvas = event.currentTarget, {ox, oy, px, py, width, height, down, across} = canvas.geometry;
    const box = canvas.getBoundingClientRect();
    const cross = [...state.cross];
    cross[across] = width - 1 - Math.floor((event.clientX - box.left - ox) / px);
    cross[down] = height - 1 - Math.floor((event.clientY - box.top - oy) / py);
    move(cross);
  }

  function press(event) {
    const {cut, down, across} = PLANES[event.currentTarget.closest(".plane").dataset.plane];
    const steps = {
      ArrowLeft: [across, 1], ArrowRight: [across, -1], ArrowUp: [down, 1], ArrowDown: [down, -1],
      PageUp: [cut, 1], PageDown: [cut, -1],
    };
    if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (steps[event.key]) {
      const cross = [...state.cross];
      cross[steps[event.key][0]] += steps[event.key][1];
      move(cross);
    } else return;
    event.preventDefault();
  }

  function zoom(by) {
    state.zoom = Math.min(12, state.zoom * by);
    if (Math.abs(state.zoom - 1) < 0.01) state.zoom = 1;
    draw();
  }

  function switches() {
    const on = (name) => [...document.querySelectorAll(`#viewer [data-${name}]`)].filter((b) => b.checked);
    state.layers = new Set(on("layer").map((box) => box.dataset.layer));
    state.kinds = new Set(on("error").map((box) => box.dataset.error));
  }

  async function open(number) {
    const {files, note} = setup.cases[number];
    const read = await Promise.all(Object.entries(files).map(async ([key, id]) => [key, readNifti(await unzip(id))]));
    state.volumes = Object.fromEntries(read);
    state.number = number;
    state.zoom = 1;
    state.box = box();
    const {dims, spacing} = state.volumes.image;
    const grid = `${dims.join(" × ")} voxels of ${spacing.map((s) => Number(s.toFixed(2))).join(" × ")} mm`;
    byId("note").textContent = `Shown on ${grid}${note ? `: ${note}. Scores are of the full grid.` : "."}`;
    for (const box of document.querySelectorAll("#viewer [data-layer]")) {
      box.disabled = !state.volumes[box.dataset.layer];
    }
    switches();
    judge();
    go();
  }

  function fault(error) {
    const place = byId("fault");
    place.textContent = `The viewer cannot show this case (${error.message ?? error}); the pictures below still do.`;
    place.hidden = false;
    byId("body").hidden = !state.volumes;
  }

  for (const plane of document.querySelectorAll("#viewer-planes .plane")) {
    const canvas = plane.querySelector(".view"), {cut} = PLANES[plane.dataset.plane];
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); point(event); });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons & 1) point(event); });
    canvas.addEventListener("keydown", press);
    // The wheel scrolls the page until the plane was clicked: nobody loses their place by accident.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return;
      event.preventDefault();
      const cross = [...state.cross];
      cross[cut] -= Math.sign(event.deltaY);
      move(cross);
    }, {passive: false});
    plane.querySelector("input").addEventListener("input", (event) => {
      const cross = [...state.cross];
      cross[cut] = Number(event.target.value);
      move(cross);
    });
  }
  byId("case").addEventListener("change", (event) => { viewer.ready = open(Number(event.target.value)).catch(fault); });
  byId("judged").addEventListener("change", () => { judge(); draw(); });
  byId("goto").addEventListener("change", go);
  for (const id of ["brightness", "contrast"]) byId(id).addEventListener("input", draw);
  byId("show").addEventListener("change", (event) => {
    byId("planes").dataset.only = event.target.value;
    draw();
  });
  byId("in").addEventListener("click", () => zoom(1.5));
  byId("out").addEventListener("click", () => zoom(1 / 1.5));
  for (const box of document.querySelectorAll("#viewer [data-layer], #viewer [data-error]")) {
    box.addEventListener("change", () => { switches(); draw(); });
  }
  addEventListener("resize", () => { if (state.volumes) draw(); });

  const viewer = {setup, state, listeners, unzip, move, ready: null};
  window.medkdViewer = viewer;
  viewer.ready = (typeof DecompressionStream === "undefined"
    ? Promise.reject(new Error("this browser cannot unpack gzip, one from 2023 or later can"))
    : open(0)).catch(fault);
})();
