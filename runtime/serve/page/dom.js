// Makes elements. Text only ever becomes text nodes: prompts are other people's words.

const SVG = "http://www.w3.org/2000/svg";

// An element with properties (`class`, `aria-*`, `data-*`, `role` as attributes; functions as listeners) and children.
export function h(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

export function s(name, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, name), properties, children);
}

function fill(element, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(key, value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((one) => one !== undefined && one !== null));
  return element;
}

export const byId = (id) => document.getElementById(id);

// Writes only what is new: screen readers announce a live region when its text is set.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, visible) {
  element.hidden = !visible;
}

export function number(value, digits = 3) {
  return typeof value === "number" && Number.isFinite(value) ? value.toFixed(digits) : "none";
}
