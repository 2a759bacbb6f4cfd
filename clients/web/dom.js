// Building elements without ever parsing markup: every string ends up in a text node or in a named attribute.

const SVG = "http://www.w3.org/2000/svg";

/** Element `tag` with `props` (functions become listeners, `true` an empty attribute, null/false nothing). */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A line icon from the sprite in index.html. Hidden from screen readers: the button around it has the name. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows only an icon. */
export function iconButton(name, label, onclick, props = {}) {
  return h("button", { type: "button", class: "quiet", "aria-label": label, title: label, click: onclick, ...props },
    icon(name));
}

export const $ = (selector, root = document) => root.querySelector(selector);

/** localStorage that may be full or forbidden: reads fall back, writes say whether they were kept. */
export const keep = {
  get(name, fallback = null) {
    try {
      return localStorage.getItem(`headrace.${name}`) ?? fallback;
    } catch {
      return fallback;
    }
  },
  set(name, value) {
    try {
      if (value === null || value === "") localStorage.removeItem(`headrace.${name}`);
      else localStorage.setItem(`headrace.${name}`, value);
      return true;
    } catch {
      return false;
    }
  },
  /** Conversations that an earlier visit left behind unwritten. */
  journal() {
    const names = (() => {
      try {
        return Object.keys(localStorage).filter((name) => name.startsWith("headrace.journal."));
      } catch {
        return [];
      }
    })();
    return names.flatMap((name) => {
      try {
        return [JSON.parse(localStorage.getItem(name))].filter((raw) => typeof raw?.id === "string");
      } catch {
        localStorage.removeItem(name);
        return [];
      }
    });
  },
};
