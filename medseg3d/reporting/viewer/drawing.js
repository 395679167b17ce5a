// One slice on one canvas: image, fills, outlines, differences, uncertainty, then letters, scale bar and crosshair.

const DIFFERENCES = { missed: [77, 171, 247], extra: [255, 107, 107], other: [255, 212, 59] };
const RIM = "rgba(11, 13, 16, 0.6)";
const LETTERS = [
  ["A", "L", "P", "R"],
  ["S", "L", "I", "R"],
  ["S", "P", "I", "A"],
]; // by axis: top, right, bottom, left; the patient's right is on the left, as on a radiologist's screen

function rgbOf(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}

// Where a slice lies on a canvas: true to scale, as large as fits, then zoomed and moved.
function placementOf(plane, width, height, view) {
  const widthMm = plane.columns * plane.column_mm;
  const heightMm = plane.rows * plane.row_mm;
  const perMm = Math.min(width / widthMm, height / heightMm) * view.zoom;
  return {
    perMm,
    x: plane.column_mm * perMm,
    y: plane.row_mm * perMm,
    left: (width - widthMm * perMm) / 2 + view.dx,
    top: (height - heightMm * perMm) / 2 + view.dy,
  };
}

function canvasOf(plane, fill) {
  const canvas = document.createElement("canvas");
  canvas.width = plane.columns;
  canvas.height = plane.rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(plane.columns, plane.rows);
  fill(image.data);
  context.putImageData(image, 0, 0);
  return canvas;
}

// Gray values of a channel through a window of values.
function grayCanvas(slice, plane, levels, channel, window_) {
  const low = (window_.low - levels.offset) / levels.step;
  const scale = 255 / Math.max((window_.high - window_.low) / levels.step, 1e-6);
  return canvasOf(plane, (pixels) => {
    const values = slice.channels[channel];
    for (let i = 0; i < values.length; i += 1) {
      const gray = (values[i] - low) * scale;
      pixels[4 * i] = pixels[4 * i + 1] = pixels[4 * i + 2] = gray;
      pixels[4 * i + 3] = 255;
    }
  });
}

function blend(pixels, at, [red, green, blue], alpha) {
  const under = pixels[at + 3] / 255;
  const all = alpha + under * (1 - alpha);
  if (all <= 0) return;
  const mix = (over, below) => (over * alpha + below * under * (1 - alpha)) / all;
  pixels[at] = mix(red, pixels[at]);
  pixels[at + 1] = mix(green, pixels[at + 1]);
  pixels[at + 2] = mix(blue, pixels[at + 2]);
  pixels[at + 3] = all * 255;
}

// All that is an area and not a line, over the image.
function areaCanvas(slice, plane, scene, state) {
  const colors = scene.labels.map((label) => rgbOf(label.color));
  const shown = (label) => label > 0 && label !== scene.ignored && state.areLabelsOn && !state.hidden.has(label);
  const filled = ["reference", "prediction"].filter((name) => slice[name] && state[name] === "fill");
  const { reference, prediction, uncertainty } = slice;
  return canvasOf(plane, (pixels) => {
    for (let i = 0; i < plane.rows * plane.columns; i += 1) {
      if (uncertainty && state.uncertainty && uncertainty[i]) {
        blend(pixels, 4 * i, [255, 230 - 0.8 * uncertainty[i], 40], (0.75 * uncertainty[i]) / 255);
      }
      for (const name of filled) {
        const label = slice[name][i];
        if (shown(label)) blend(pixels, 4 * i, colors[label - 1], state.opacity);
      }
      if (state.differences && reference && prediction && reference[i] !== prediction[i]) {
        const kind = differenceOf(reference[i], prediction[i], shown, scene.ignored);
        if (kind) blend(pixels, 4 * i, DIFFERENCES[kind], Math.max(state.opacity, 0.5));
      }
    }
  });
}

function differenceOf(reference, prediction, shown, ignored) {
  if (reference === ignored) return null;
  if (shown(reference)) return shown(prediction) ? "other" : "missed";
  return shown(prediction) ? "extra" : null;
}

function drawOutlines(context, slice, plane, scene, state, placed, ratio) {
  const matrix = new DOMMatrix([placed.x, 0, 0, placed.y, placed.left, placed.top]);
  for (const name of ["prediction", "reference"]) {
    if (!slice[name] || state[name] !== "outline" || !state.areLabelsOn) continue;
    slice.paths = slice.paths || {};
    if (!slice.paths[name]) {
      const outlines = outlinesOf(slice[name], plane.rows, plane.columns);
      slice.paths[name] = [...outlines].map(([label, loops]) => [label, pathOf(loops)]);
    }
    const width = (name === "prediction" ? 1.8 : 1.3) * ratio;
    for (const [label, path] of slice.paths[name]) {
      if (label === scene.ignored || state.hidden.has(label)) continue;
      const there = new Path2D();
      there.addPath(path, matrix);
      context.lineJoin = "round";
      context.setLineDash([]);
      context.strokeStyle = RIM;
      context.lineWidth = width + 1.4 * ratio;
      context.stroke(there);
      context.setLineDash(name === "reference" ? [4 * ratio, 3 * ratio] : []);
      context.strokeStyle = name === "reference" ? "#ffffff" : scene.labels[label - 1].color;
      context.lineWidth = width;
      context.stroke(there);
    }
  }
  context.setLineDash([]);
}

// A round length in mm of 1, 2 or 5 times a power of ten that takes at most `longest` mm.
function barLength(longest) {
  const power = 10 ** Math.floor(Math.log10(longest));
  return [5, 2, 1].map((factor) => factor * power).find((length) => length <= longest);
}

function lengthText(mm) {
  const digits = (value) => String(Number(value.toPrecision(3)));
  if (mm < 0.1) return `${digits(mm * 1000)} µm`;
  return mm < 10 ? `${digits(mm)} mm` : `${digits(mm / 10)} cm`;
}

function outlinedText(context, text, x, y, ratio) {
  context.lineWidth = 3 * ratio;
  context.strokeStyle = "rgba(11, 13, 16, 0.85)";
  context.strokeText(text, x, y);
  context.fillStyle = "#f1f3f5";
  context.fillText(text, x, y);
}

function drawMarks(context, plane, scene, placed, ratio, caption) {
  const { width, height } = context.canvas;
  context.lineJoin = "round";
  const font = (size) => `600 ${size * ratio}px system-ui, "DejaVu Sans", sans-serif`;
  if (scene.has_directions) {
    const [top, right, bottom, left] = LETTERS[plane.axis];
    context.font = font(14);
    context.textAlign = "center";
    context.textBaseline = "middle";
    outlinedText(context, top, width / 2, 12 * ratio, ratio);
    outlinedText(context, bottom, width / 2, height - 12 * ratio, ratio);
    outlinedText(context, left, 12 * ratio, height / 2, ratio);
    outlinedText(context, right, width - 12 * ratio, height / 2, ratio);
  }
  context.font = font(12);
  context.textBaseline = "alphabetic";
  context.textAlign = "left";
  outlinedText(context, caption, 8 * ratio, 18 * ratio, ratio);
  const length = barLength((width / placed.perMm) * 0.3);
  const pixels = length * placed.perMm;
  const [x, y] = [width - 10 * ratio - pixels, height - 10 * ratio];
  for (const [color, thick] of [["rgba(11, 13, 16, 0.85)", 5], ["#f1f3f5", 2.5]]) {
    context.strokeStyle = color;
    context.lineWidth = thick * ratio;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + pixels, y);
    context.stroke();
  }
  context.textAlign = "right";
  outlinedText(context, lengthText(length), width - 10 * ratio, y - 7 * ratio, ratio);
}

function drawCrosshair(context, at, ratio) {
  const { width, height } = context.canvas;
  context.strokeStyle = "rgba(255, 255, 255, 0.45)";
  context.lineWidth = ratio;
  context.beginPath();
  const gap = 9 * ratio;
  for (const [x0, y0, x1, y1] of [
    [0, at.y, at.x - gap, at.y],
    [at.x + gap, at.y, width, at.y],
    [at.x, 0, at.x, at.y - gap],
    [at.x, at.y + gap, at.x, height],
  ]) {
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
  }
  context.stroke();
}
