// The controls of a viewer: they show its state and change it through `set`, nothing else.

class Toolbar {
  constructor(viewer) {
    this.viewer = viewer;
    this.cases = this.select("Case", viewer.sources.map((source) => source.scene.title), (number) => viewer.open(number));
    this.cases.hidden = viewer.sources.length < 2;
    this.channel = this.select("Channel", [], (channel) => this.changeChannel(channel));
    this.window = this.select("Window", [], (preset) => viewer.pick(preset));
    this.styles = ["reference", "prediction"].map((name) => {
      const title = name[0].toUpperCase() + name.slice(1);
      return this.select(title, STYLES, (style) => viewer.set({ [name]: STYLES[style] }));
    });
    this.differences = this.button("Differences", () => viewer.set({ differences: !viewer.state.differences }));
    this.uncertainty = this.button("Uncertainty", () => viewer.set({ uncertainty: !viewer.state.uncertainty }));
    this.crosshair = this.button("Crosshair", () => viewer.set({ crosshair: !viewer.state.crosshair }));
    this.layouts = ["Axial", "Coronal", "Sagittal", "All"].map((name, axis) =>
      this.button(name, () => viewer.layout(name === "All" ? "all" : String(axis))),
    );
    const planes = element("div", { className: "v-group", role: "group", "aria-label": "Planes" }, this.layouts);
    const switches = element("div", { className: "v-group" }, [this.differences, this.uncertainty, this.crosshair]);
    this.root = element("div", { className: "v-bar" }, [this.cases, this.channel, this.window, ...this.styles, planes, switches]);
    this.labels = element("div", { className: "v-labels" });
    this.key = element("p", { className: "v-key" });
    this.foot = element("div", { className: "v-foot" }, [this.key, this.labels, this.opacity(), this.help()]);
  }

  select(title, options, choose) {
    const list = element("select", {});
    list.addEventListener("change", () => choose(list.selectedIndex));
    const label = element("label", { className: "v-select" }, [element("span", { textContent: title }), list]);
    label.list = list;
    this.fill(label, options);
    return label;
  }

  fill(label, options) {
    label.list.replaceChildren(...options.map((text) => element("option", { textContent: text })));
  }

  button(text, act) {
    const made = element("button", { type: "button", textContent: text });
    made.addEventListener("click", act);
    return made;
  }

  opacity() {
    this.strength = element("input", { type: "range", min: 0.1, max: 1, step: 0.05, value: 0.4 });
    this.strength.addEventListener("input", () => this.viewer.set({ opacity: Number(this.strength.value) }));
    return element("label", { className: "v-opacity" }, [element("span", { textContent: "Strength of fills" }), this.strength]);
  }

  help() {
    const rows = KEYS.map(([keys, text]) => element("tr", {}, [element("th", { textContent: keys }), element("td", { textContent: text })]));
    const summary = element("summary", { textContent: "Keys, mouse and touch" });
    return element("details", { className: "v-help" }, [summary, element("table", {}, [element("tbody", {}, rows)])]);
  }

  changeChannel(channel) {
    this.viewer.state.channel = channel;
    this.fillWindows();
    this.viewer.pick(0);
  }

  fillWindows() {
    const levels = this.viewer.scene.channels[this.viewer.state.channel];
    this.fill(this.window, [...levels.windows.map((each) => each.name), "by hand"]);
  }

  open(scene) {
    this.fill(this.channel, scene.channels.map((levels) => levels.name));
    this.channel.hidden = scene.channels.length < 2;
    this.fillWindows();
    const has = (layer) => scene.layers.includes(layer);
    this.styles[0].hidden = !has("reference");
    this.styles[1].hidden = !has("prediction");
    this.differences.hidden = !(has("reference") && has("prediction"));
    this.uncertainty.hidden = !has("uncertainty");
    this.layouts.forEach((button, axis) => {
      const isThere = axis === 3 ? scene.planes.length > 1 : scene.planes.some((plane) => plane.axis === axis);
      button.hidden = !isThere || scene.planes.length < 2;
      if (axis < 3 && !scene.has_directions) button.textContent = `Axis ${axis}`;
    });
    const swatch = (color) => {
      const made = element("i", {});
      made.style.background = color;
      return made;
    };
    this.all = this.button("All labels", () => this.viewer.set({ areLabelsOn: !this.viewer.state.areLabelsOn }));
    this.each = scene.labels.map((label, place) => {
      const made = this.button("", () => this.viewer.toggle(place + 1));
      made.append(swatch(label.color), label.name);
      return made;
    });
    this.labels.replaceChildren(this.all, ...this.each);
    this.update();
  }

  update() {
    const { viewer } = this;
    const { state, scene } = viewer;
    if (!this.each) return;
    const press = (button, is) => button.setAttribute("aria-pressed", String(Boolean(is)));
    this.cases.list.selectedIndex = viewer.number;
    this.channel.list.selectedIndex = state.channel;
    this.window.list.selectedIndex = viewer.preset < 0 ? scene.channels[state.channel].windows.length : viewer.preset;
    this.styles.forEach((label, place) => (label.list.selectedIndex = STYLES.indexOf(state[["reference", "prediction"][place]])));
    press(this.differences, state.differences);
    press(this.uncertainty, state.uncertainty);
    press(this.crosshair, state.crosshair);
    const layout = viewer.root.dataset.layout || "all";
    this.layouts.forEach((button, axis) => press(button, layout === (axis === 3 ? "all" : String(axis))));
    press(this.all, state.areLabelsOn);
    this.each.forEach((button, place) => press(button, state.areLabelsOn && !state.hidden.has(place + 1)));
    this.key.replaceChildren(...this.legend());
  }

  legend() {
    const { state, scene } = this.viewer;
    const parts = [];
    if (state.reference === "outline" && scene.layers.includes("reference")) parts.push(["v-dashed", "reference"]);
    if (state.prediction === "outline" && scene.layers.includes("prediction")) parts.push(["v-solid", "prediction, in the color of its label"]);
    if (state.differences) parts.push(["v-missed", "missed"], ["v-extra", "extra"], ["v-other", "another label"]);
    if (state.uncertainty) parts.push(["v-unsure", "unsure"]);
    return parts.map(([kind, text]) => element("span", { className: kind, textContent: text }));
  }
}
