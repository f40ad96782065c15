// Keeps the page of a run in progress up to date. What the reader opened, focused or selected stays so.
"use strict";
const PERIOD = 3000; // milliseconds
const STOPS = "a,summary,[tabindex]";
let shown = document.getElementById("status").dataset.stamp;

const keyOf = (part) => `${part.closest("[id]")?.id} ${part.querySelector("summary").textContent}`;

function say(word, said) {
  const status = document.getElementById("status");
  status.className = word;
  if (status.textContent !== said) status.textContent = said; // announced only if it changes
}

function replaceMain(fresh) {
  const old = document.getElementById("main");
  const open = new Set([...old.querySelectorAll("details[open]")].map(keyOf));
  for (const part of fresh.querySelectorAll("details")) part.open = open.has(keyOf(part));
  const focused = [...old.querySelectorAll(STOPS)].indexOf(document.activeElement);
  old.replaceWith(document.adoptNode(fresh));
  if (focused >= 0) fresh.querySelectorAll(STOPS)[focused]?.focus({ preventScroll: true });
}

async function load(path) {
  const reply = await fetch(path, { cache: "no-store" });
  if (!reply.ok) throw new Error(`status ${reply.status}`);
  return reply.text();
}

async function refresh() {
  try {
    const state = JSON.parse(await load("state"));
    if (state.stamp !== shown && String(getSelection()) === "") {
      const page = new DOMParser().parseFromString(await load("./"), "text/html");
      replaceMain(page.getElementById("main"));
      shown = page.getElementById("status").dataset.stamp;
    }
    say(state.word, state.said);
  } catch (error) {
    say("stalled", "This page no longer refreshes: seedtune watch has been stopped, or cannot read the run.");
  }
  setTimeout(refresh, PERIOD);
}

setTimeout(refresh, PERIOD);
