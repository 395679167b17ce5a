// One plane of a case: a canvas with a slider below it, and what mouse, fingers and keys do on it.

const PLANE_NAMES = ["axial", "coronal", "sagittal"];
const SWIPE_PIXELS = 9; // of a finger's way per slice: a whole phone's width goes through some forty slices

class Panel {
  constructor(viewer, axis) {
    this.viewer = viewer;
    this.axis = axis;
    this.place = 0;
    this.view = { zoom: 1, dx: 0, dy: 0 };
    this.pointers = new Map();
    this.canvas = element("canvas", { tabIndex: 0, role: "img" });
    this.slider = element("input", { type: "range", min: 0, step: 1 });
    this.root = element("div", { className: "v-panel" }, [this.canvas, this.slider]);
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  open(scene) {
    this.scene = scene;
    this.plane = scene.planes.find((plane) => plane.axis === this.axis);
    this.root.hidden = !this.plane;
    this.slice = null;
    this.view = { zoom: 1, dx: 0, dy: 0 };
    if (!this.plane) return;
    this.slider.max = this.plane.indices.length - 1;
    this.slider.hidden = this.plane.indices.length < 2;
    this.name = scene.has_directions ? PLANE_NAMES[this.axis] : `axis ${this.axis}`;
    this.slider.setAttribute("aria-label", `${this.name} slice`);
    this.follow();
  }

  // Show the slice that is nearest to the viewer's position.
  follow() {
    if (!this.plane) return;
    const wanted = this.viewer.position[this.axis];
    const distances = this.plane.indices.map((index) => Math.abs(index - wanted));
    this.fetch(distances.indexOf(Math.min(...distances)));
  }

  show(place) {
    const last = this.plane.indices.length - 1;
    const wanted = Math.min(Math.max(place, 0), last);
    this.viewer.position[this.axis] = this.plane.indices[wanted];
    this.fetch(wanted);
    this.viewer.drawAll();
  }

  async fetch(place) {
    this.place = place;
    this.slider.value = place;
    const { source } = this.viewer;
    try {
      const slice = await source.slice(this.axis, place);
      if (this.viewer.source !== source || this.place !== place) return; // another one is wanted by now
      this.slice = slice;
      this.draw();
      this.prefetch(source, place);
    } catch (error) {
      this.viewer.say(String(error.message || error));
    }
  }

  prefetch(source, place) {
    for (const next of [place + 1, place - 1]) {
      if (next >= 0 && next < this.plane.indices.length) source.slice(this.axis, next).catch(() => {});
    }
  }

  draw() {
    if (!this.slice || !this.canvas.clientWidth) return;
    const { canvas, slice, plane, scene } = this;
    const { state } = this.viewer;
    const ratio = Math.min(window.devicePixelRatio || 1, 3);
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    const context = canvas.getContext("2d");
    const placed = this.placed(ratio);
    const target = [placed.left, placed.top, plane.columns * placed.x, plane.rows * placed.y];
    context.fillStyle = "#0b0d10";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = state.smooth;
    context.drawImage(grayCanvas(slice, plane, scene.channels[state.channel], state.channel, state.window), ...target);
    context.imageSmoothingEnabled = false;
    context.drawImage(areaCanvas(slice, plane, scene, state), ...target);
    drawOutlines(context, slice, plane, scene, state, placed, ratio);
    if (state.crosshair) drawCrosshair(context, this.onCanvas(this.viewer.position, placed), ratio);
    const caption = `${this.name} ${plane.indices[this.place] + 1} / ${scene.shape[this.axis]}`;
    drawMarks(context, plane, scene, placed, ratio, caption);
    canvas.setAttribute("aria-label", `${scene.case}, ${caption}`);
  }

  placed(ratio) {
    const placed = placementOf(this.plane, this.canvas.clientWidth, this.canvas.clientHeight, this.view);
    return Object.fromEntries(Object.entries(placed).map(([key, value]) => [key, value * ratio]));
  }

  // Of a voxel position the point on the canvas, and back.
  onCanvas(position, placed) {
    const { plane } = this;
    const row = (plane.row_from - position[plane.row_axis]) / plane.stride + 0.5;
    const column = (plane.column_from - position[plane.column_axis]) / plane.stride + 0.5;
    return { x: placed.left + column * placed.x, y: placed.top + row * placed.y };
  }

  pixelAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const placed = this.placed(1);
    const column = Math.floor((event.clientX - box.left - placed.left) / placed.x);
    const row = Math.floor((event.clientY - box.top - placed.top) / placed.y);
    const { rows, columns } = this.plane;
    return { row: Math.min(Math.max(row, 0), rows - 1), column: Math.min(Math.max(column, 0), columns - 1) };
  }

  // Where the pointer is, the other planes go.
  point(event) {
    const { plane } = this;
    const { row, column } = this.pixelAt(event);
    const { position } = this.viewer;
    position[plane.row_axis] = plane.row_from - row * plane.stride;
    position[plane.column_axis] = plane.column_from - column * plane.stride;
    position[this.axis] = plane.indices[this.place];
    this.viewer.follow(this);
    this.tell(row * plane.columns + column);
  }

  tell(at) {
    const { scene, slice } = this;
    if (!slice) return;
    const { state } = this.viewer;
    const levels = scene.channels[state.channel];
    const value = slice.channels[state.channel][at] * levels.step + levels.offset;
    const parts = [`${levels.name} ${Number(value.toPrecision(4))}${levels.unit ? ` ${levels.unit}` : ""}`];
    for (const name of ["reference", "prediction"]) {
      if (!slice[name]) continue;
      const label = slice[name][at];
      const text = label === scene.ignored ? "not annotated" : label ? scene.labels[label - 1].name : "background";
      parts.push(`${name}: ${text}`);
    }
    if (slice.uncertainty) parts.push(`uncertainty ${(slice.uncertainty[at] / 255).toFixed(2)}`);
    this.viewer.say(parts.join(" · "));
  }

  zoomBy(factor) {
    const zoom = Math.min(Math.max(this.view.zoom * factor, 1), 16);
    const share = zoom / this.view.zoom;
    this.view = zoom === 1 ? { zoom, dx: 0, dy: 0 } : { zoom, dx: this.view.dx * share, dy: this.view.dy * share };
    this.draw();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => this.zoomBy(0));
    canvas.addEventListener("focus", () => (this.viewer.focused = this));
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.release(event, end));
  }

  // The wheel belongs to the page until somebody has clicked into the viewer.
  wheel(event) {
    if (!this.viewer.root.contains(document.activeElement)) return;
    event.preventDefault();
    if (event.ctrlKey) this.zoomBy(event.deltaY < 0 ? 1.25 : 0.8);
    else this.show(this.place + (event.deltaY > 0 ? 1 : -1));
  }

  press(event) {
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    const does = event.pointerType === "touch" ? "swipe" : event.shiftKey || event.button === 2 ? "window" : event.button === 1 ? "pan" : "point";
    const at = { x: event.clientX, y: event.clientY };
    this.pointers.set(event.pointerId, { does, start: at, last: at, place: this.place });
    if (does === "point") this.point(event);
  }

  move(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    const now = { x: event.clientX, y: event.clientY };
    const [dx, dy] = [now.x - pointer.last.x, now.y - pointer.last.y];
    if (this.pointers.size === 2) this.pinch(event.pointerId, now, dx, dy);
    else if (pointer.does === "point") this.point(event);
    else if (pointer.does === "window") this.viewer.windowBy(dx, dy);
    else if (pointer.does === "pan" || this.view.zoom > 1) this.pan(dx, dy);
    else if (pointer.does === "swipe") {
      const place = pointer.place + Math.round((now.x - pointer.start.x) / SWIPE_PIXELS);
      if (place !== this.place) this.show(place);
    }
    pointer.last = now;
  }

  pinch(id, now, dx, dy) {
    const [other] = [...this.pointers].filter(([each]) => each !== id).map(([, pointer]) => pointer);
    const distance = (at) => Math.hypot(at.x - other.last.x, at.y - other.last.y);
    this.pan(dx / 2, dy / 2);
    this.zoomBy(distance(now) / Math.max(distance(this.pointers.get(id).last), 1));
  }

  pan(dx, dy) {
    this.view = { ...this.view, dx: this.view.dx + dx, dy: this.view.dy + dy };
    this.draw();
  }

  release(event, end) {
    const pointer = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    const way = pointer && Math.hypot(event.clientX - pointer.start.x, event.clientY - pointer.start.y);
    if (end === "pointerup" && pointer && pointer.does === "swipe" && way < 8) this.point(event);
  }
}
