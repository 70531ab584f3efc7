// The blind comparison: shows a pair, sends one key, shows the next. It never learns whose answer is whose.

const $ = (id) => document.getElementById(id);
let shown = null; // the pair on the page
let busy = false;

async function ask(options) {
  busy = true;
  for (const button of $("choose").querySelectorAll("button")) button.disabled = true;
  const late = setTimeout(() => {
    $("pair").hidden = true;
    $("waiting").hidden = false;
  }, 250);
  try {
    const response = await fetch("/state", options);
    const told = await response.json();
    if (!response.ok) throw new Error(told.error);
    $("failure").hidden = true;
    show(told);
  } catch (error) {
    $("failure").hidden = false;
    $("failure").textContent = error instanceof TypeError
      ? "The server cannot be reached. Your answers so far are kept; start the same command again and reload."
      : error.message;
  } finally {
    clearTimeout(late);
    $("waiting").hidden = true;
    if (shown) $("pair").hidden = false;
    busy = false;
    for (const button of $("choose").querySelectorAll("button")) button.disabled = false;
  }
}

function show({ done, total, judged, pair, result, names }) {
  shown = pair ?? null;
  $("bar").max = total;
  $("bar").value = done;
  $("end").hidden = !pair || judged === 0;
  $("choose").hidden = !pair;
  $("choose").querySelector('[data-key="u"]').hidden = judged === 0;
  $("pair").hidden = !pair;
  $("result").hidden = Boolean(pair);
  if (pair) {
    $("progress").textContent = `prompt ${pair.number + 1} of ${total}`;
    $("prompt").textContent = pair.prompt;
    $("left").textContent = pair.left.trim();
    $("right").textContent = pair.right.trim();
    $("status").textContent = `Prompt ${pair.number + 1} of ${total}`;
    window.scrollTo({ top: 0 });
    $("prompt").focus({ preventScroll: true });
  } else showResult(result, names, judged);
}

function showResult(result, [first, second], judged) {
  $("progress").textContent = `${judged} pairs judged`;
  $("sentence").textContent = result.sentence;
  const rows = [
    ["first", `${first} preferred`, result.first],
    ["tie", "Cannot tell", result.ties],
    ["second", `${second} preferred`, result.second],
  ];
  $("split").replaceChildren();
  $("numbers").replaceChildren();
  for (const [kind, label, n] of rows) {
    const part = document.createElement("span");
    part.className = kind;
    part.style.setProperty("--n", n);
    if (n) $("split").append(part);
    line(kind, label, n);
  }
  $("split").setAttribute("aria-label", rows.map(([, label, n]) => `${label}: ${n}`).join(", "));
  $("split").hidden = judged === 0;
  line("plain", "The same text from both (not asked)", result.identical);
  line("plain", "p-value, exact two-sided binomial test", result.p_value.toPrecision(3));
  $("status").textContent = result.sentence;
}

function line(kind, label, value) {
  const dt = document.createElement("dt"), dd = document.createElement("dd");
  dt.className = kind;
  dt.textContent = label;
  dd.textContent = value;
  $("numbers").append(dt, dd);
}

function send(key) {
  if (busy || !shown) return;
  ask({
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ number: shown.number, key }),
  });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (["1", "2", "0", "u"].includes(key)) {
    event.preventDefault();
    send(key);
  }
});
for (const button of $("choose").querySelectorAll("button")) button.addEventListener("click", () => send(button.dataset.key));
$("end").addEventListener("click", () => send("end"));
ask();
