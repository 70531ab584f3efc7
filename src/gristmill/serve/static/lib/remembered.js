// What this browser remembers for the next time: model, settings, system prompt, whether tokens are shown, who votes.

const NAME = "gristmill";

export function remembered() {
  try {
    return JSON.parse(localStorage.getItem(NAME)) ?? {};
  } catch {
    return {}; // spoilt by hand, or storage is forbidden
  }
}

export function remember(values) {
  try {
    localStorage.setItem(NAME, JSON.stringify({ ...remembered(), ...values }));
  } catch {
    // storage is forbidden or full: next time starts anew
  }
}
