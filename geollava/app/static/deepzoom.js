// A scene of any size on a canvas: tiles of the level that the screen can show, layers over them.
// Places are in pixels of the scene; a scale is screen pixels for each of them.

const KEEP_TILES = 500;
const LOAD_AT_ONCE = 6;
const STEP = 60; // pixels of the screen that an arrow key moves
const ZOOM = 1.4;
const LARGEST = 24; // screen pixels for a pixel of the scene

/** What several canvases show of one scene. */
export class View {
  constructor() {
    this.canvases = new Set();
    this.center = [0, 0];
    this.scale = 1;
    this.size = null;
  }

  show(size) {
    this.size = size;
    this.fit();
  }

  redraw() {
    for (const canvas of this.canvases) canvas.redraw();
  }

  get smallest() {
    const stage = [...this.canvases].find((one) => one.width > 0);
    if (!stage || !this.size) return 1;
    return Math.min(stage.width / this.size[0], stage.height / this.size[1]);
  }

  fit() {
    if (!this.size) return;
    this.fitted = true;
    this.scale = this.smallest;
    this.center = this.size.map((side) => side / 2);
    this.redraw();
  }

  move(across, down) {
    this.fitted = false;
    this.center = [across, down].map((step, axis) =>
      Math.min(Math.max(this.center[axis] + step / this.scale, 0), this.size[axis]));
    this.redraw();
  }

  /** Zooms; the place at `from`, in screen pixels off the middle, stays where it is. */
  zoom(factor, from = [0, 0]) {
    if (!this.size) return;
    const before = this.scale;
    this.scale = Math.min(Math.max(before * factor, this.smallest / 2), LARGEST);
    const share = 1 - before / this.scale;
    this.move(from[0] * share * this.scale, from[1] * share * this.scale);
  }
}

export class DeepZoom {
  /** @param stage the element that holds the canvas and takes keys. */
  constructor(stage, view, drawLayers) {
    this.stage = stage;
    this.canvas = stage.querySelector("canvas");
    this.view = view;
    this.drawLayers = drawLayers;
    this.tiles = new Map();
    this.loading = 0;
    view.canvases.add(this);
    new ResizeObserver(() => this.resize()).observe(stage);
    this.takePointers();
    stage.addEventListener("keydown", (event) => this.key(event));
  }

  show(scene) {
    this.scene = scene;
    this.tiles.clear();
    this.redraw();
  }

  resize() {
    this.width = this.stage.clientWidth;
    this.height = this.stage.clientHeight;
    this.ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * this.ratio);
    this.canvas.height = Math.round(this.height * this.ratio);
    if (this.view.fitted) this.view.fit();
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.stage.setAttribute("aria-busy", "true");
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
      this.stage.setAttribute("aria-busy", String(this.loading > 0)); // tiles still to come
    });
  }

  draw() {
    const pen = this.canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.scene || !this.width) return;
    const { center, scale } = this.view;
    const shown = scale * this.ratio;
    pen.setTransform(shown, 0, 0, shown,
      this.canvas.width / 2 - center[0] * shown, this.canvas.height / 2 - center[1] * shown);
    const half = [this.width / scale / 2, this.height / scale / 2];
    const box = [center[0] - half[0], center[1] - half[1], center[0] + half[0], center[1] + half[1]];
    pen.imageSmoothingEnabled = shown < 2;
    const wanted = Math.floor(Math.log2(1 / shown));
    const finest = Math.min(Math.max(wanted, 0), this.scene.levels - 1);
    // Coarse tiles first: they stand for finer ones that are still to come.
    for (let level = this.scene.levels - 1; level >= finest; level--) {
      this.drawLevel(pen, level, box, level === finest || level === this.scene.levels - 1);
    }
    this.drawLayers(pen, { box, scale: shown });
  }

  drawLevel(pen, level, box, load) {
    const step = this.scene.tile * 2 ** level;
    const [width, height] = this.scene.size;
    const last = [Math.ceil(width / step) - 1, Math.ceil(height / step) - 1];
    const from = [0, 1].map((axis) => Math.max(Math.floor(box[axis] / step), 0));
    const to = [0, 1].map((axis) => Math.min(Math.floor(box[axis + 2] / step), last[axis]));
    for (let row = from[1]; row <= to[1]; row++) {
      for (let col = from[0]; col <= to[0]; col++) {
        const image = this.tile(level, col, row, load);
        if (!image) continue;
        pen.drawImage(image, col * step, row * step,
          Math.min(step, width - col * step), Math.min(step, height - row * step));
      }
    }
  }

  tile(level, col, row, load) {
    const name = `${level}/${col}/${row}`;
    const found = this.tiles.get(name);
    if (found) {
      this.tiles.delete(name); // and back, as the one used last
      this.tiles.set(name, found);
      return found.complete && found.naturalWidth ? found : null;
    }
    if (!load || this.loading >= LOAD_AT_ONCE) return null;
    const image = new Image();
    this.loading++;
    image.onload = image.onerror = () => {
      this.loading--;
      this.redraw();
    };
    image.src = `/tiles/${this.scene.key}/${name}.jpg`;
    this.tiles.set(name, image);
    if (this.tiles.size > KEEP_TILES) this.tiles.delete(this.tiles.keys().next().value);
    return null;
  }

  key(event) {
    const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    if (!this.scene || event.ctrlKey || event.metaKey || event.altKey) return;
    if (moves[event.key]) this.view.move(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.view.zoom(ZOOM);
    else if (event.key === "-") this.view.zoom(1 / ZOOM);
    else if (event.key === "0") this.view.fit();
    else return;
    event.preventDefault();
  }

  takePointers() {
    const down = new Map(); // pointers that are down, and where
    const off = (event) => {
      const frame = this.stage.getBoundingClientRect();
      return [event.clientX - frame.left - this.width / 2, event.clientY - frame.top - this.height / 2];
    };
    const spread = () => {
      const [[x, y], [u, v]] = down.values();
      return { far: Math.hypot(x - u, y - v), middle: [(x + u) / 2, (y + v) / 2] };
    };
    this.stage.addEventListener("pointerdown", (event) => {
      if (!this.scene) return;
      this.stage.setPointerCapture(event.pointerId);
      down.set(event.pointerId, off(event));
    });
    this.stage.addEventListener("pointermove", (event) => {
      if (!down.has(event.pointerId)) return;
      const [before, now] = [down.get(event.pointerId), off(event)];
      const wide = down.size === 2 ? spread() : null;
      down.set(event.pointerId, now);
      if (wide) {
        const { far, middle } = spread();
        this.view.zoom(far / wide.far, middle);
        this.view.move(wide.middle[0] - middle[0], wide.middle[1] - middle[1]);
      } else if (down.size === 1) this.view.move(before[0] - now[0], before[1] - now[1]);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      this.stage.addEventListener(end, (event) => down.delete(event.pointerId));
    }
    this.stage.addEventListener("dblclick", (event) => this.view.zoom(ZOOM * ZOOM, off(event)));
    this.stage.addEventListener("wheel", (event) => {
      if (!this.scene) return;
      event.preventDefault();
      this.view.zoom(Math.exp(-event.deltaY / 400), off(event));
    }, { passive: false });
  }
}
