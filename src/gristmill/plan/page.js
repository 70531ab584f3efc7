// The arithmetic of gristmill.plan.cost and gristmill.plan.inference over DATA; layouts and memory were searched before.
"use strict";
const at = (name) => document.getElementById(name);
const value = (name) => Number(at(name).value);
const show = (name, text, bad) => { at(name).textContent = text; at(name).classList.toggle("bad", Boolean(bad)); };

function short(x, unit) {
  for (const [size, letter] of [[1e24, "Y"], [1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (x >= size) return `${Number((x / size).toPrecision(3))} ${letter}${unit}`;
  return `${Number(x.toPrecision(3))} ${unit}`;
}
const amount = (x) => x.toLocaleString("en-US", { maximumFractionDigits: x < 10 ? 2 : 0 });
const dollars = (x) => (x > 0 && x < 0.01 ? `$${x.toPrecision(2)}` : x < 100 ? `$${x.toFixed(2)}` : `$${amount(x)}`);
const bytes = (x) => (x < 1e9 ? `${(x / 1e6).toFixed(x < 1e7 ? 1 : 0)} MB` : `${(x / 1e9).toFixed(1)} GB`);
// Sliders of 0 … 1000 over decades.
const geometric = (name, low, high) => low * (high / low) ** (value(name) / 1000);
const place = (x, low, high) => Math.round(1000 * Math.log(x / low) / Math.log(high / low));
const TOKENS = [1e6, 1e14];
const CONTEXT = [128, Math.max(1024, DATA.context_limit)];

function training() {
  const tokens = geometric("tokens", ...TOKENS);
  const row = DATA.layouts[value("devices")];
  const mfu = value("mfu") / 100, availability = value("availability") / 100, price = value("price") / 100;
  const flops = DATA.training_flops_per_token * tokens;
  const hours = flops / (DATA.peak * mfu * availability * 3600);
  show("tokens-shown", short(tokens, ""));
  show("devices-shown", amount(row.devices));
  show("mfu-shown", `${value("mfu")}%`);
  show("availability-shown", `${value("availability")}%`);
  show("price-shown", price ? dollars(price) : "no price");
  show("flops", flops.toExponential(2));
  const cost = (name, text) => show(name, row.best ? text : "–");
  cost("days", amount(hours / row.devices / 24));
  cost("device-hours", short(hours, "h"));
  cost("energy", short(hours * DATA.power * DATA.assumed.pue, "Wh"));
  cost("money", price ? dollars(hours * price) : "–");
  const bar = at("memory-bar"), list = at("memory-parts");
  bar.replaceChildren(); list.replaceChildren();
  if (!row.best) {
    show("layout", "does not fit", true); show("memory-total", "–"); show("modelled", "–");
    bar.setAttribute("aria-label", "no layout fits");
    return;
  }
  const best = row.best, memory = best.memory;
  show("layout", `${best.words}, recompute ${best.recompute}`);
  show("modelled", `${Math.round(100 * best.mfu)}% at best`, best.mfu < mfu);
  show("memory-total", `${bytes(memory.total)} of ${bytes(DATA.memory)}`);
  bar.setAttribute("aria-label", `${Math.round(100 * memory.total / DATA.memory)}% of a device's memory`);
  ["weights", "gradients", "optimizer", "activations", "logits", "buffers"].forEach((part, i) => {
    const piece = document.createElement("span"), item = document.createElement("li"), dot = document.createElement("i");
    piece.className = dot.className = `k${i}`;
    piece.style.width = `${100 * memory[part] / DATA.memory}%`;
    item.append(dot, `${part} ${bytes(memory[part])}`);
    bar.append(piece); list.append(item);
  });
}

function serving() {
  const form = DATA.weights[at("weights").value], cache = DATA.caches[at("cache").value];
  const context = 64 * Math.round(geometric("context", ...CONTEXT) / 64);
  const rows = 2 ** value("rows"), devices = 2 ** value("serving-devices"), price = value("price") / 100;
  const layers = DATA.windows.length;
  const seen = DATA.windows.reduce((sum, window) => sum + Math.min(context, window ?? context), 0);
  const causal = DATA.windows.reduce((sum, window) => {
    const width = Math.min(context, window ?? context);
    return sum + (width * (width + 1) / 2 + (context - width) * width) / context;
  }, 0);
  const reading = (n) => form.bytes - DATA.table_bytes_unread * form.ends / 8
    - DATA.experts * form.bits / 8 * DATA.missed ** n;
  const peak = form.peak * devices * DATA.reached, bandwidth = DATA.bandwidth * devices * DATA.reached;
  const moving = (reading(rows) + rows * cache / layers * seen) / bandwidth;
  const computing = rows * (DATA.matrix_flops + DATA.attention_flops * seen) / peak;
  const step = Math.max(moving, computing);
  const prompt = (DATA.matrix_flops + DATA.attention_flops * causal) * context / peak;
  const prefill = context / Math.max(prompt, reading(context) / bandwidth);
  const needs = form.bytes + cache * context * rows, has = DATA.memory * devices * 0.92;
  show("context-shown", amount(context)); show("rows-shown", amount(rows)); show("serving-devices-shown", amount(devices));
  show("needs", bytes(needs));
  show("fits", needs <= has ? "yes" : `no: ${bytes(has)} are free`, needs > has);
  show("decode", `${amount(rows / step)} tokens/s (${moving >= computing ? "memory" : "arithmetic"})`);
  show("row-speed", `${amount(1 / step)} tokens/s`);
  show("prefill", `${amount(prefill)} tokens/s`);
  const million = (speed) => price ? dollars(price * devices / 3600 / speed * 1e6) : "–";
  show("price-out", million(rows / step)); show("price-in", million(prefill));
}

function draw() { training(); serving(); }
at("tokens").value = place(DATA.tokens, ...TOKENS);
const startBest = DATA.layouts[DATA.start].best;
at("mfu").value = Math.round(100 * Math.min(DATA.usual_mfu, startBest ? startBest.mfu : DATA.usual_mfu));
at("availability").value = Math.round(100 * DATA.assumed.availability);
at("price").value = Math.round(100 * DATA.assumed.price);
at("context").value = place(Math.min(4096, DATA.context_limit), ...CONTEXT);
document.addEventListener("input", draw);
draw();
