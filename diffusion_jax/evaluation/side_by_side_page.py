"""The page of `side_by_side`: HTML that loads nothing, with DATA in the place of its images. Plain
ASCII."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Side by side</title>
<style>
  body { margin: 0; font: 17px/1.5 system-ui, sans-serif; color: #222; background: #f4f4f2; text-align: center; }
  main { max-width: 1100px; margin: 0 auto; padding: 20px 16px; }
  h1 { font-size: 24px; font-weight: 600; margin: 0 0 12px; }
  progress { width: min(420px, 80vw); height: 10px; vertical-align: middle; accent-color: #2b6cb0; }
  #count { display: inline-block; min-width: 5em; color: #666; font-variant-numeric: tabular-nums; }
  #pair { display: flex; justify-content: center; gap: 4vw; margin: 22px 0; }
  #pair button { padding: 8px; border: 2px solid #ccc; border-radius: 10px; background: white; }
  #pair button:hover, #pair button:focus-visible { border-color: #2b6cb0; outline: none; }
  img { display: block; }
  img.small { image-rendering: pixelated; }
  button { font: inherit; padding: 8px 18px; border: 1px solid #bbb; border-radius: 8px; background: white; cursor: pointer; }
  button:disabled { color: #aaa; cursor: default; }
  kbd { padding: 1px 6px; border: 1px solid #bbb; border-radius: 4px; background: white; font: 14px system-ui, sans-serif; }
  p { margin: 14px 0; color: #666; }
  #done { margin: 60px 0; font-size: 20px; color: #222; }
  input { font: inherit; padding: 7px 10px; border: 1px solid #bbb; border-radius: 8px; width: 11em; }
  [hidden] { display: none !important; }
</style>
</head>
<body>
<main>
  <h1 id="question"></h1>
  <div><progress id="bar" value="0"></progress> <span id="count"></span></div>
  <div id="rating">
    <div id="pair">
      <button id="left" aria-label="the left image"><img id="left_image" alt="left image"></button>
      <button id="right" aria-label="the right image"><img id="right_image" alt="right image"></button>
    </div>
    <button id="tie">Neither, or both alike</button>
    <p>Click the better image, or press <kbd>&larr;</kbd> left, <kbd>&rarr;</kbd> right, <kbd>&darr;</kbd> neither,
      <kbd>&uarr;</kbd> undo.</p>
  </div>
  <div id="done" hidden>Thank you, every pair is rated. Now save the ratings and send the file back.</div>
  <p>
    <button id="undo">Undo</button>
    <input id="rater" placeholder="your name, if you like" aria-label="your name" maxlength="80">
    <button id="save">Save ratings.json</button>
    <button id="restart">Start over</button>
  </p>
  <p id="unkept" hidden>This browser does not keep your answers: save them before you close the page.</p>
</main>
<script>
"use strict";
const data = DATA;
const element = name => document.getElementById(name);
const store = "side by side " + data.page;
const fresh = () => ({
  token: Array.from({length: 4}, () => Math.random().toString(36).slice(2, 8)).join(""), rater: "", answers: []
});
let state = fresh();

try {
  const kept = JSON.parse(localStorage.getItem(store));
  if (kept && kept.token && Array.isArray(kept.answers)) state = kept;
} catch (error) { element("unkept").hidden = false; }

function keep() {
  try { localStorage.setItem(store, JSON.stringify(state)); } catch (error) { element("unkept").hidden = false; }
}

function fit() {
  const [height, width] = data.size;
  let scale = Math.min(24, 0.42 * Math.min(innerWidth, 1100) / width, 0.56 * innerHeight / height);
  if (scale > 2) scale = Math.floor(scale);
  for (const side of ["left_image", "right_image"]) {
    element(side).style.width = Math.round(width * scale) + "px";
    element(side).style.height = Math.round(height * scale) + "px";
    element(side).className = scale >= 1.5 ? "small" : "";
  }
}

function show() {
  const at = state.answers.length, total = data.pairs.length, done = at >= total;
  element("bar").value = at;
  element("count").textContent = at + " of " + total;
  element("rating").hidden = done;
  element("done").hidden = !done;
  element("undo").disabled = at === 0;
  if (!done) {
    element("left_image").src = data.pairs[at][0];
    element("right_image").src = data.pairs[at][1];
  }
}

function answer(which) {
  if (state.answers.length < data.pairs.length) { state.answers.push(which); keep(); show(); }
}

function undo() {
  if (state.answers.length) { state.answers.pop(); keep(); show(); }
}

function ratings() {
  return {page: data.page, token: state.token, rater: state.rater.trim(), saved: Date.now(), answers: state.answers};
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(ratings(), null, 1)], {type: "application/json"}));
  link.download = "ratings.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

element("question").textContent = data.question;
element("bar").max = data.pairs.length;
element("rater").value = state.rater;
for (const which of ["left", "right", "tie"]) {
  element(which).onclick = event => { event.currentTarget.blur(); answer(which); };
}
element("undo").onclick = undo;
element("save").onclick = save;
element("restart").onclick = () => {
  if (confirm("Forget all answers and begin as a new rater?")) {
    state = fresh(); element("rater").value = ""; keep(); show();
  }
};
element("rater").oninput = () => { state.rater = element("rater").value; keep(); };
document.addEventListener("keydown", event => {
  if (event.target === element("rater") || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const act = {ArrowLeft: () => answer("left"), ArrowRight: () => answer("right"), ArrowDown: () => answer("tie"),
    ArrowUp: undo}[event.key];
  if (act) { event.preventDefault(); act(); }
});
addEventListener("resize", fit);
fit();
show();
</script>
</body>
</html>
"""
