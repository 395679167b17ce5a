// Outlines of labels along the edges of pixels: closed loops, so that a dashed line stays dashed around corners.

// From a map of label indices to, for each label in it, loops of corner coordinates [x0, y0, x1, y1, …].
function outlinesOf(map, rows, columns) {
  const edges = new Map(); // label → Map(start corner → end corners); the label lies to the right of each edge
  const width = columns + 1;
  const add = (label, from, to) => {
    let own = edges.get(label);
    if (!own) edges.set(label, (own = new Map()));
    const ends = own.get(from);
    if (ends) ends.push(to);
    else own.set(from, [to]);
  };
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const at = row * columns + column;
      const label = map[at];
      if (!label) continue;
      const corner = row * width + column;
      if (row === 0 || map[at - columns] !== label) add(label, corner, corner + 1);
      if (column === columns - 1 || map[at + 1] !== label) add(label, corner + 1, corner + width + 1);
      if (row === rows - 1 || map[at + columns] !== label) add(label, corner + width + 1, corner + width);
      if (column === 0 || map[at - 1] !== label) add(label, corner + width, corner);
    }
  }
  const outlines = new Map();
  for (const [label, own] of edges) outlines.set(label, loopsOf(own, width));
  return outlines;
}

function loopsOf(edges, width) {
  const loops = [];
  for (const start of edges.keys()) {
    while (edges.get(start).length) {
      const loop = [];
      let at = start;
      let heading = 0;
      do {
        const ends = edges.get(at);
        let choice = 0;
        // Where two pixels touch by a corner, turn right: they stay loops of their own.
        if (ends.length > 1) choice = ends.findIndex((end) => end - at === turnedRight(heading, width));
        const next = ends.splice(Math.max(choice, 0), 1)[0];
        if (next - at !== heading) loop.push(at % width, Math.floor(at / width));
        heading = next - at;
        at = next;
      } while (at !== start);
      loops.push(loop);
    }
  }
  return loops;
}

function turnedRight(heading, width) {
  return { 1: width, [width]: -1, [-1]: -width, [-width]: 1 }[heading];
}

// A path on a canvas, in pixels of the slice.
function pathOf(loops) {
  const path = new Path2D();
  for (const loop of loops) {
    path.moveTo(loop[0], loop[1]);
    for (let i = 2; i < loop.length; i += 2) path.lineTo(loop[i], loop[i + 1]);
    path.closePath();
  }
  return path;
}
