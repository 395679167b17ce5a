// Slices of a case: from a page, where chosen ones are embedded, or from a server, which has all.
// A slice holds its layers in screen order: rows from top to bottom, columns from left to right.

function bytesOfBase64(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i += 1) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The layers of `count` slices of a plane, as scene.py packs them: per channel the differences along each row (all low bytes, then
// all high bytes), then reference, prediction and uncertainty, where the scene has them.
function unpacked(bytes, scene, plane, count) {
  const size = count * plane.rows * plane.columns;
  let at = 0;
  const layers = { channels: [], reference: null, prediction: null, uncertainty: null };
  for (let channel = 0; channel < scene.channels.length; channel += 1) {
    const values = new Uint16Array(size);
    for (let i = 0; i < size; i += 1) {
      const difference = bytes[at + i] | (bytes[at + size + i] << 8);
      values[i] = i % plane.columns === 0 ? difference : values[i - 1] + difference;
    }
    at += 2 * size;
    layers.channels.push(values);
  }
  for (const name of ["reference", "prediction"]) {
    if (!scene.layers.includes(name)) continue;
    const map = scene.label_bytes === 1 ? bytes.subarray(at, at + size) : new Uint16Array(size);
    if (scene.label_bytes === 2) for (let i = 0; i < size; i += 1) map[i] = bytes[at + i] | (bytes[at + size + i] << 8);
    at += size * scene.label_bytes;
    layers[name] = map;
  }
  if (scene.layers.includes("uncertainty")) {
    layers.uncertainty = bytes.subarray(at, at + size);
    at += size;
  }
  if (at !== bytes.length) throw new Error(`A plane has ${bytes.length} bytes, expected ${at}.`);
  return layers;
}

function sliceOf(layers, plane, place) {
  const size = plane.rows * plane.columns;
  const part = (array) => array && array.subarray(place * size, (place + 1) * size);
  return {
    channels: layers.channels.map(part),
    reference: part(layers.reference),
    prediction: part(layers.prediction),
    uncertainty: part(layers.uncertainty),
  };
}

// Slices that the page holds; a plane is unpacked when it is first looked at.
class EmbeddedSource {
  constructor(scene) {
    this.scene = scene;
    this.planes = new Map();
  }

  async slice(axis, place) {
    const plane = this.scene.planes.find((each) => each.axis === axis);
    if (!this.planes.has(axis)) {
      const unpacking = inflated(bytesOfBase64(plane.data)).then((bytes) => unpacked(bytes, this.scene, plane, plane.indices.length));
      this.planes.set(axis, unpacking);
    }
    return sliceOf(await this.planes.get(axis), plane, place);
  }
}

// Slices that are asked for one by one; the latest stay.
class ServerSource {
  constructor(scene, address, kept = 96) {
    this.scene = scene;
    this.address = address;
    this.kept = kept;
    this.slices = new Map();
  }

  async slice(axis, place) {
    const plane = this.scene.planes.find((each) => each.axis === axis);
    const key = `${axis}/${plane.indices[place]}`;
    let found = this.slices.get(key);
    if (found) this.slices.delete(key);
    found = found || this.fetched(key, plane);
    this.slices.set(key, found);
    if (this.slices.size > this.kept) this.slices.delete(this.slices.keys().next().value);
    try {
      return await found;
    } catch (error) {
      this.slices.delete(key);
      throw error;
    }
  }

  async fetched(key, plane) {
    const answer = await fetch(`${this.address}/${key}`);
    if (!answer.ok) throw new Error(`The server does not have this slice any more (${answer.status}).`);
    return sliceOf(unpacked(new Uint8Array(await answer.arrayBuffer()), this.scene, plane, 1), plane, 0);
  }
}
