"use strict";
// NiiVue draws the same volumes in three dimensions. Its source lies compressed in the page until it is asked for.
(() => {
  const viewer = window.medkdViewer;
  const button = document.getElementById("viewer-three"), stage = document.getElementById("viewer-3d");
  const planes = document.getElementById("viewer-planes");
  let nv = null, shown = null, overlays = [];

  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

  async function start() {
    const source = new TextDecoder().decode(await viewer.unzip("niivue-source"));
    const script = document.createElement("script");
    script.textContent = source;
    document.head.append(script);
    nv = new niivue.Niivue({
      backColor: [0, 0, 0, 1], isRadiologicalConvention: true, show3Dcrosshair: true, loadingText: "",
      crosshairColor: [1, 1, 1, 0.6], crosshairWidth: 0.5, sagittalNoseLeft: true,
      heroImageFraction: 0.55, heroSliceType: niivue.SLICE_TYPE.RENDER, multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS, dragAndDropEnabled: false,
      logLevel: "silent",
    });
    await nv.attachToCanvas(document.getElementById("niivue"));
    nv.setSliceType(nv.sliceTypeMultiplanar);
    // A click in NiiVue's planes moves the page's cross too.
    nv.onLocationChange = () => {
      const {dims} = viewer.state.volumes.label;
      const cross = dims.map((n, i) => Math.min(n - 1, Math.max(0, Math.floor(nv.scene.crosshairPos[i] * n))));
      if (cross.some((v, i) => v !== viewer.state.cross[i])) viewer.move(cross);
    };
  }

  // The header of a volume of the page before other voxels: classes, or errors, from 0 up.
  function file(values) {
    const buffer = viewer.state.volumes.image.buffer.slice(0, 352 + values.length);
    const head = new DataView(buffer);
    head.setInt16(70, 2, true);
    head.setInt16(72, 8, true);
    new Uint8Array(buffer, 352).set(values);
    return buffer;
  }

  async function add(name, values, colours, labels) {
    const image = await niivue.NVImage.new(file(values), `${name}.nii`, "gray", 0);
    const channel = (i) => [0, ...colours.map((colour) => rgb(colour)[i])];
    image.setColormapLabel({
      R: channel(0), G: channel(1), B: channel(2), A: [0, ...colours.map(() => 255)],
      I: [...Array(colours.length + 1).keys()], labels: ["", ...labels],
    });
    nv.addVolume(image);
  }

  async function fill() {
    const {volumes} = viewer.state;
    while (nv.volumes.length) nv.removeVolumeByIndex(nv.volumes.length - 1);
    nv.addVolume(await niivue.NVImage.new(volumes.image.buffer.slice(0), "image.nii", "gray", 1));
    overlays = [];
    for (const layer of viewer.setup.layers.filter(({key}) => volumes[key])) {
      const values = Uint8Array.from(volumes[layer.key].data, (v) => Math.min(255, Math.max(0, v)));
      const most = values.reduce((a, b) => Math.max(a, b), 1);
      const names = Array.from({length: most}, (_, i) => viewer.setup.labels[i + 1] ?? "");
      await add(layer.key, values, Array(most).fill(layer.colour), names);
      overlays.push({opacity: () => viewer.state.layers.has(layer.key) ? 0.3 : 0});
    }
    const kinds = viewer.setup.errors;
    await add("errors", viewer.state.errors.data, kinds.map((k) => k.colour), kinds.map((k) => k.name));
    overlays.push({opacity: () => viewer.state.kinds.size ? 0.9 : 0});
    shown = {number: viewer.state.number, errors: viewer.state.errors};
  }

  async function show() {
    if (!nv) await start();
    if (shown?.number !== viewer.state.number || shown.errors !== viewer.state.errors) await fill();
    overlays.forEach(({opacity}, i) => nv.setOpacity(i + 1, opacity()));
    const {cross, volumes} = viewer.state;
    const here = [...nv.scene.crosshairPos].map((v, i) => Math.floor(v * volumes.label.dims[i]));
    if (here.some((v, i) => v !== cross[i])) nv.scene.crosshairPos = cross.map((v, i) => (v + 0.5) / volumes.label.dims[i]);
    nv.drawScene();
  }

  let queue = Promise.resolve();
  const refresh = () => { queue = queue.then(show).catch(away); viewer.three = queue; };

  function away(error) {
    stage.hidden = true;
    planes.hidden = false;
    button.disabled = true;
    for (const id of ["show", "in", "out", "brightness", "contrast"]) document.getElementById(`viewer-${id}`).disabled = false;
    button.setAttribute("aria-pressed", "false");
    button.title = `NiiVue cannot start in this browser: ${error.message ?? error}`;
    button.textContent = "3-D: no WebGL2 here";
    nv = null;
  }

  button.addEventListener("click", () => {
    const on = stage.hidden;
    stage.hidden = !on;
    planes.hidden = on;
    for (const id of ["show", "in", "out", "brightness", "contrast"]) document.getElementById(`viewer-${id}`).disabled = on;
    button.setAttribute("aria-pressed", String(on));
    if (on) refresh(); else dispatchEvent(new Event("resize"));
  });
  viewer.listeners.push(() => { if (!stage.hidden) refresh(); });
})();
