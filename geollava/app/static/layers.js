// What became of each token, drawn over a scene: a pixel for each token, and frames from near.

const KEPT = [255, 176, 32];
const LEFT_OUT = -1; // as in side.py
const FRAMED = 7; // screen pixels of a token from which it is framed, not filled

export class Layers {
  constructor() {
    this.on = new Set();
    this.seen = null;
  }

  /** @param seen what the server says of it; roots int32, see `Side.layers`. */
  show(seen, roots) {
    this.seen = seen;
    this.roots = roots;
    if (!seen) return;
    const clear = [0, 0, 0, 0];
    const members = new Uint32Array(roots.length);
    for (const root of roots) if (root !== LEFT_OUT) members[root]++;
    this.images = {
      left: this.image((root) => (root === LEFT_OUT ? [0, 0, 0, 165] : clear)),
      merged: this.image((root) => (members[root] > 1 ? [...color(root), 130] : clear)),
      kept: this.image((root, place) => (root === place ? [...KEPT, 220] : clear)),
    };
  }

  image(colorOf) {
    const [rows, cols] = this.seen.grid;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [cols, rows];
    const pen = canvas.getContext("2d");
    const pixels = pen.createImageData(cols, rows);
    for (let place = 0; place < rows * cols; place++) {
      pixels.data.set(colorOf(this.roots[place], place), 4 * place);
    }
    pen.putImageData(pixels, 0, 0);
    return canvas;
  }

  draw(pen, { box, scale }, size) {
    if (!this.seen) return;
    const [left, top, width, height] = this.seen.box;
    const [rows, cols] = this.seen.grid;
    const cell = [width / cols, height / rows];
    pen.save();
    pen.beginPath();
    pen.rect(0, 0, ...size); // the canvas's black border has tokens too
    pen.clip();
    pen.imageSmoothingEnabled = cell[0] * scale < 1;
    const near = cell[0] * scale >= FRAMED;
    for (const name of ["left", "merged", "kept"]) {
      if (!this.on.has(name) || (name === "kept" && near)) continue;
      pen.drawImage(this.images[name], left, top, width, height);
    }
    if (this.on.has("kept") && near) this.frame(pen, box, scale, cell);
    if (this.on.has("crops")) this.grid(pen, scale);
    pen.restore();
  }

  frame(pen, box, scale, cell) {
    const [left, top] = this.seen.box;
    const [rows, cols] = this.seen.grid;
    const from = [Math.max(Math.floor((box[0] - left) / cell[0]), 0), Math.max(Math.floor((box[1] - top) / cell[1]), 0)];
    const to = [Math.min((box[2] - left) / cell[0], cols), Math.min((box[3] - top) / cell[1], rows)];
    const line = Math.max(2 / scale, cell[0] / 12);
    pen.beginPath();
    for (let row = from[1]; row < to[1]; row++) {
      for (let col = from[0]; col < to[0]; col++) {
        if (this.roots[row * cols + col] !== row * cols + col) continue;
        pen.rect(left + col * cell[0] + line / 2, top + row * cell[1] + line / 2, cell[0] - line, cell[1] - line);
      }
    }
    pen.lineWidth = line;
    pen.strokeStyle = `rgb(${KEPT})`;
    pen.stroke();
  }

  grid(pen, scale) {
    const [left, top, width, height] = this.seen.box;
    const [rows, cols] = this.seen.crops;
    pen.beginPath();
    for (let col = 0; col <= cols; col++) {
      pen.moveTo(left + (col * width) / cols, top);
      pen.lineTo(left + (col * width) / cols, top + height);
    }
    for (let row = 0; row <= rows; row++) {
      pen.moveTo(left, top + (row * height) / rows);
      pen.lineTo(left + width, top + (row * height) / rows);
    }
    for (const [style, line] of [["rgba(0, 0, 0, 0.6)", 3], ["#5fd4ff", 1]]) {
      pen.strokeStyle = style;
      pen.lineWidth = line / scale;
      pen.stroke();
    }
  }
}

/** A color for a cluster; roots that are near each other or in line get others. */
function color(root) {
  const hue = (Math.imul(root + 1, 2654435761) >>> 0) % 360;
  const part = (shift) => {
    const at = (shift + hue / 30) % 12;
    return Math.round(255 * (0.55 - 0.4 * Math.max(-1, Math.min(at - 3, 9 - at, 1))));
  };
  return [part(0), part(8), part(4)];
}
