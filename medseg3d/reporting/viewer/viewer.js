// The viewer: three planes of a case that scroll together, and what is drawn on them.

function element(tag, properties = {}, children = []) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

const STYLES = ["outline", "fill", "off"];
const KEYS = [
  ["↑ ↓, wheel", "previous and next slice (Page keys: five; Home, End)"],
  ["drag", "crosshair; the other planes follow"],
  ["Shift or right drag", "window: width and center"],
  ["+ − 0, Ctrl wheel", "zoom; middle drag moves"],
  ["A C S V", "axial, coronal, sagittal alone; all three"],
  ["R, P", "reference, prediction: outline, fill, off"],
  ["D, U", "differences, uncertainty"],
  ["L, 1 … 9", "all labels, one label on and off"],
  ["W, X, I", "next window, crosshair, smooth image"],
  ["[ ]", "previous and next case"],
  ["on a phone", "swipe sideways: slices; pinch: zoom; tap: crosshair"],
];

class Viewer {
  constructor(root, sources) {
    this.root = root;
    this.sources = sources;
    this.position = [0, 0, 0];
    this.state = {
      channel: 0,
      window: { low: 0, high: 1 },
      reference: "outline",
      prediction: "outline",
      differences: false,
      uncertainty: false,
      opacity: 0.4,
      areLabelsOn: true,
      hidden: new Set(),
      crosshair: false,
      smooth: true,
    };
    this.panels = [0, 1, 2].map((axis) => new Panel(this, axis));
    [this.focused] = this.panels;
    this.toolbar = new Toolbar(this);
    this.panes = element("div", { className: "v-panes" }, this.panels.map((panel) => panel.root));
    this.status = element("p", { className: "v-status", role: "status" });
    this.root.classList.add("viewer");
    this.root.append(this.toolbar.root, this.panes, this.status, this.toolbar.foot);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.open(0);
    if (window.innerWidth <= 640) this.layout(String(this.panels.find((panel) => panel.plane).axis));
  }

  open(number) {
    this.number = number;
    this.source = this.sources[number];
    this.scene = this.source.scene;
    this.position = [...this.scene.position];
    this.state.hidden = new Set();
    this.state.channel = Math.min(this.state.channel, this.scene.channels.length - 1);
    this.root.dataset.planes = this.scene.planes.length;
    this.pick(0);
    this.toolbar.open(this.scene);
    for (const panel of this.panels) panel.open(this.scene);
    const alone = this.panels[Number(this.root.dataset.layout)];
    if (alone && !alone.plane) this.layout("all");
    this.say(this.scene.caption);
  }

  // A window of the channel by its number among the presets.
  pick(preset) {
    this.preset = preset;
    const { low, high } = this.scene.channels[this.state.channel].windows[preset];
    this.state.window = { low, high };
    this.toolbar.update();
    this.drawAll();
  }

  windowBy(dx, dy) {
    const { low, high } = this.state.window;
    const width = Math.max((high - low) * Math.exp(dx / 200), this.scene.channels[this.state.channel].step);
    const center = (low + high) / 2 + (dy * (high - low)) / 300;
    this.preset = -1;
    this.state.window = { low: center - width / 2, high: center + width / 2 };
    this.say(`window: center ${Number(center.toPrecision(3))}, width ${Number(width.toPrecision(3))}`);
    this.toolbar.update();
    this.drawAll();
  }

  set(changes) {
    Object.assign(this.state, changes);
    this.toolbar.update();
    this.drawAll();
  }

  toggle(label) {
    const hidden = new Set(this.state.hidden);
    if (!hidden.delete(label)) hidden.add(label);
    this.set({ hidden });
  }

  layout(which) {
    this.root.dataset.layout = which;
    this.toolbar.update();
    const alone = this.panels[Number(which)];
    if (alone) {
      const isOurs = this.panels.some((panel) => panel.canvas === document.activeElement);
      this.focused = alone;
      if (isOurs) alone.canvas.focus({ preventScroll: true }); // a canvas that hides would take the keys with it
    }
    this.drawAll();
  }

  follow(pointed) {
    for (const panel of this.panels) if (panel !== pointed) panel.follow();
    this.drawAll();
  }

  drawAll() {
    if (this.isAsked) return; // once a frame is enough
    this.isAsked = true;
    requestAnimationFrame(() => {
      this.isAsked = false;
      for (const panel of this.panels) panel.draw();
    });
  }

  say(text) {
    this.status.textContent = text;
  }

  // What a key does; false where it is not ours.
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isField = ["SELECT", "INPUT", "BUTTON", "SUMMARY"].includes(event.target.tagName);
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5, Home: -1e9, End: 1e9 };
    if (event.key in steps) {
      if (isField) return; // they have these keys themselves
      this.focused.show(this.focused.place + steps[event.key]);
    } else if (event.target.tagName === "SELECT" || !this.letter(event.key)) return;
    event.preventDefault();
  }

  letter(key) {
    const { state, scene } = this;
    const next = (values, value) => values[(values.indexOf(value) + 1) % values.length];
    const has = (layer) => scene.layers.includes(layer);
    const actions = {
      a: () => this.layout("0"),
      c: () => this.layout("1"),
      s: () => this.layout("2"),
      v: () => this.layout("all"),
      r: () => has("reference") && this.set({ reference: next(STYLES, state.reference) }),
      p: () => has("prediction") && this.set({ prediction: next(STYLES, state.prediction) }),
      d: () => has("reference") && has("prediction") && this.set({ differences: !state.differences }),
      u: () => has("uncertainty") && this.set({ uncertainty: !state.uncertainty }),
      l: () => this.set({ areLabelsOn: !state.areLabelsOn }),
      w: () => this.pick((this.preset + 1) % scene.channels[state.channel].windows.length),
      x: () => this.set({ crosshair: !state.crosshair }),
      i: () => this.set({ smooth: !state.smooth }),
      "+": () => this.focused.zoomBy(1.25),
      "=": () => this.focused.zoomBy(1.25),
      "-": () => this.focused.zoomBy(0.8),
      0: () => this.focused.zoomBy(0),
      "[": () => this.number > 0 && this.open(this.number - 1),
      "]": () => this.number + 1 < this.sources.length && this.open(this.number + 1),
    };
    const action = actions[key.toLowerCase()];
    if (action) action();
    else if (/^[1-9]$/.test(key) && Number(key) <= scene.labels.length) this.toggle(Number(key));
    else return false;
    return true;
  }
}

// Scenes of the page, from the element that holds them as JSON.
function openEmbedded(root, holder) {
  const scenes = JSON.parse(holder.textContent);
  root.hidden = false;
  return new Viewer(root, scenes.map((scene) => new EmbeddedSource(scene)));
}

globalThis.medseg3dViewer = { Viewer, ServerSource, EmbeddedSource, openEmbedded, outlinesOf, barLength, lengthText, unpacked, element };

for (const root of document.querySelectorAll("[data-scenes]")) {
  root.viewer = openEmbedded(root, document.getElementById(root.dataset.scenes));
}
