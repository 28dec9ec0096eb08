// The page: opens scenes, shows what stays of them, asks.

import { DeepZoom, View } from "/static/deepzoom.js";
import { Layers } from "/static/layers.js";
import * as server from "/static/server.js";

const find = (selector, within = document) => within.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const number = new Intl.NumberFormat("en");
const view = new View();
const sides = {}; // "a" and "b": what is drawn, chosen and known of each
let state, scene, busy;

function say(text) {
  find("#status").textContent = text;
}

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

/** Does one thing at a time; what goes wrong is one line. */
async function work(what, action) {
  if (busy) return;
  busy = true;
  find("#error").textContent = "";
  say(what);
  update();
  try {
    await action();
  } catch (error) {
    if (!(error instanceof server.ServerError)) console.error(error);
    say("");
    find("#error").textContent = sentence(error.message);
  }
  busy = false;
  find("#progress").hidden = true;
  update();
}

/** With a capital, unless a file's name comes first, and an end. */
function sentence(text) {
  const first = /^\S+\.\S/.test(text) ? text.charAt(0) : text.charAt(0).toUpperCase();
  return first + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

function hear(event) {
  const bar = find("#progress");
  if (event.stage === "waiting") say(`Waiting: ${event.before} before this …`);
  if (event.stage !== "crops") return;
  bar.hidden = false;
  bar.value = event.done / event.total;
  say(`Encoding crop ${number.format(event.done)} of ${number.format(event.total)} …`);
}

function update() {
  find("#reduce button").disabled = busy || !scene;
  find("#ask button").disabled = busy || !scene;
  for (const name of ["#file", "#take", "#close"]) find(name).disabled = Boolean(busy);
  find("#close").hidden = !scene;
  document.body.classList.toggle("empty", !scene);
  document.body.setAttribute("aria-busy", String(Boolean(busy)));
}

// ---- scenes

function openScene(label, path, body) {
  return work(`Opening ${label} …`, async () => {
    const size = body instanceof Blob ? body.size : 0;
    if (size > state.upload_bytes) {
      const most = number.format(Math.floor(state.upload_bytes / 2 ** 20));
      throw new server.ServerError(`${label} is too large: the server takes ${most} MiB`);
    }
    showScene(await server.send(path, body));
    say(`${scene.name}: ${scene.size.map(number.format).join(" × ")} pixels`);
  });
}

function showScene(opened) {
  scene = opened;
  find("#log").replaceChildren();
  showQuestions();
  for (const side of Object.values(sides)) {
    side.zoom.show(scene);
    showSeen(side, null);
  }
  view.show(scene ? scene.size : null);
  update();
}

function upload(file) {
  if (file) openScene(file.name, `/api/scene?name=${encodeURIComponent(file.name)}`, file);
}

function takeScenes() {
  find("#file").addEventListener("change", (event) => {
    upload(event.target.files[0]);
    event.target.value = "";
  });
  find("#open").addEventListener("submit", (event) => {
    event.preventDefault();
    const [kind, ...name] = find("#listed").value.split(":");
    const label = name.join(":");
    openScene(label, "/api/scene", { [kind]: label });
  });
  find("#close").addEventListener("click", () => work("", async () => {
    await server.send("/api/scene", undefined, "DELETE");
    showScene(null);
    say("The scene was closed, and its files removed.");
    find("#file").focus();
  }));
  const stage = find('.view[data-side="a"] .stage');
  for (const name of ["dragover", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      if (name === "drop") upload(event.dataTransfer.files[0]);
      stage.classList.toggle("over", name === "dragover");
    });
  }
  document.addEventListener("dragleave", () => stage.classList.remove("over"));
}

function listScenes() {
  for (const [kind, title, names] of [
    ["example", "Examples, drawn for you", state.examples],
    ["file", "On the server", state.files],
  ]) {
    if (!names.length) continue;
    const group = document.createElement("optgroup");
    group.label = title;
    group.append(...names.map((name) => new Option(name, `${kind}:${name}`)));
    find("#listed").append(group);
  }
}

// ---- tokens

function makeSide(name) {
  const form = find(`fieldset[data-side="${name}"]`);
  form.append(find("#side").content.cloneNode(true));
  find("legend", form).textContent = `Method ${name.toUpperCase()}`;
  const layers = new Layers();
  const stage = find(`.view[data-side="${name}"] .stage`);
  const side = { name, form, layers };
  side.zoom = new DeepZoom(stage, view, (pen, shown) => layers.draw(pen, shown, scene.size));
  sides[name] = side;
  const method = find('[name="method"]', form);
  for (const [title, names] of [
    ["Whatever is asked", state.methods.crop],
    ["For each question anew", state.methods.question],
  ]) {
    const group = document.createElement("optgroup");
    group.label = title;
    group.append(...names.map((one) => new Option(one, one)));
    method.append(group);
  }
  method.value = name === "a" ? state.begin.method : "uniform";
  const [slider, count] = [find('[name="slider"]', form), find('[name="num_keep"]', form)];
  slider.max = count.max = state.tokens_per_crop;
  slider.value = count.value = state.begin.num_keep;
  slider.addEventListener("input", () => (count.value = slider.value));
  count.addEventListener("input", () => (slider.value = count.value));
  const follow = () => {
    const anew = state.methods.question.includes(method.value);
    slider.disabled = count.disabled = method.value === "none";
    slider.max = count.max = anew ? state.begin.num_keep : state.tokens_per_crop;
    if (Number(count.value) > Number(count.max)) count.value = slider.value = count.max;
  };
  method.addEventListener("change", follow);
  return side;
}

const active = () => Object.values(sides).filter((side) => !side.form.hidden);

function chosen(side) {
  const method = find('[name="method"]', side.form).value;
  const count = Number(find('[name="num_keep"]', side.form).value);
  return { side: side.name, method, num_keep: method === "none" ? null : count };
}

async function see(side) {
  const wanted = chosen(side);
  say(`Encoding with ${wanted.method} …`);
  const { seen } = await server.listen("/api/see", wanted, hear);
  showSeen(side, seen, await server.rootMap(side.name));
}

function showSeen(side, seen, roots) {
  side.layers.show(seen, roots);
  side.asked = seen && JSON.stringify(chosen(side));
  const list = find("dl", side.form);
  list.replaceChildren();
  find(".downloads", side.form).hidden = !seen;
  const caption = find(`.view[data-side="${side.name}"] figcaption`);
  caption.textContent = "";
  if (seen) {
    const share = seen.tokens_before / seen.tokens_after;
    caption.textContent = `${side.name.toUpperCase()}: ${seen.method}, ${seen.num_keep} per crop`;
    const rows = [
      ["Tokens", `${number.format(seen.tokens_before)} → ${number.format(seen.tokens_after)} (${share.toFixed(0)} times fewer)`],
      ["Kept", `${number.format(seen.kept)}, and ${number.format(seen.merged)} merged into them`],
      ["Left out", number.format(seen.left_out)],
      ["Empty slots", number.format(seen.empty)],
      ["Seconds", stages(seen.seconds)],
      ["Memory", memory(seen)],
    ];
    for (const [name, text] of rows) list.append(element("dt", name), element("dd", text));
    for (const link of side.form.querySelectorAll(".downloads a")) {
      link.href = `/api/download/${side.name}/${link.dataset.file}`;
      link.download = ""; // by the server's name
    }
  }
  side.zoom.redraw();
}

function stages(seconds) {
  const parts = Object.entries(seconds).map(([name, value]) => `${name} ${value.toFixed(1)}`);
  const whole = Object.values(seconds).reduce((sum, value) => sum + value, 0);
  return `${whole.toFixed(1)}: ${parts.join(", ")}`;
}

function memory(told) {
  const [peak, kept] = [told.peak_memory_mib, told.session_memory_mib].map(number.format);
  return `${peak} MiB at most, ${kept} kept`;
}

function takeReductions() {
  find("#reduce").addEventListener("submit", (event) => {
    event.preventDefault();
    work("", async () => {
      for (const side of active()) await see(side);
      say("This is what stays.");
    });
  });
  find("#compare").addEventListener("change", (event) => {
    sides.b.form.hidden = find('.view[data-side="b"]').hidden = !event.target.checked;
  });
  for (const box of all("#layers input")) {
    const toggle = () => {
      for (const side of Object.values(sides)) {
        side.layers.on[box.checked ? "add" : "delete"](box.value);
        side.zoom.redraw();
      }
    };
    box.addEventListener("change", toggle);
    toggle();
  }
  const zooms = { in: () => view.zoom(1.6), out: () => view.zoom(1 / 1.6), fit: () => view.fit() };
  for (const button of all("[data-zoom]")) button.addEventListener("click", zooms[button.dataset.zoom]);
}

// ---- questions

async function ask(side, question, turn) {
  if (side.asked !== JSON.stringify(chosen(side))) await see(side); // under what is chosen now
  const reply = element("p", "", "reply");
  const label = `${side.name.toUpperCase()}, ${chosen(side).method}`;
  if (active().length > 1) turn.append(element("h3", label));
  turn.append(reply);
  say("Answering …");
  const { answer } = await server.listen("/api/ask", { side: side.name, question }, (event) => {
    hear(event);
    if (event.text) reply.textContent += event.text;
  });
  reply.textContent = answer.text || "(no words)";
  const took = `${number.format(answer.tokens_after)} tokens, seconds ${stages(answer.seconds)}, ${memory(answer)}`;
  turn.append(element("p", took, "took"));
}

function takeQuestions() {
  const words = find("#question");
  find("#ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = words.value.trim();
    if (!question || busy || !scene) return;
    work("", async () => {
      const turn = element("div", "", "turn");
      turn.append(element("p", question, "asked"));
      const log = find("#log");
      log.append(turn);
      words.value = "";
      try {
        for (const side of active()) await ask(side, question, turn);
      } catch (error) {
        words.value = question;
        if (!turn.querySelector(".took")) turn.remove();
        throw error;
      } finally {
        log.scrollTop = log.scrollHeight;
      }
      say("Answered.");
    });
  });
  words.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    find("#ask").requestSubmit();
  });
}

function showQuestions() {
  const known = scene && scene.questions.length ? scene.questions : state.questions;
  find("#known").hidden = !known.length;
  find("#known ul").replaceChildren(...known.map((question) => {
    const button = element("button", question);
    button.type = "button";
    button.addEventListener("click", () => {
      find("#question").value = question;
      find("#question").focus();
    });
    const item = element("li", "");
    item.append(button);
    return item;
  }));
}

// ---- begin

state = await server.begin();
find("#model").textContent = `Model: ${state.model}`;
find("#notes").hidden = !state.notes.length;
for (const note of state.notes) {
  const words = sentence(note).split(/(--\S+)/); // options stay on one line
  const line = element("p", "");
  line.append(...words.map((word) => (word.startsWith("--") ? element("code", word) : word)));
  find("#notes").append(line);
}
makeSide("a");
makeSide("b");
listScenes();
takeScenes();
takeReductions();
takeQuestions();
showScene(state.scene);
say(scene ? `${scene.name} is open.` : "Choose an image, or open an example.");
