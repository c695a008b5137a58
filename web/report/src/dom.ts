/** The only way by which text gets into the page: as text, never as markup. */

type Child = Node | string | null | undefined;

export function element<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  attributes: Record<string, string> = {},
  ...children: Child[]
): HTMLElementTagNameMap[Name] {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

export function button(text: string, attributes: Record<string, string>, pressed: () => void): HTMLButtonElement {
  const node = element("button", { type: "button", ...attributes }, text);
  node.addEventListener("click", pressed);
  return node;
}

/** A list to choose one of; `chosen` gets its place. */
export function chooser(what: string, names: string[], chosen: (place: number) => void): HTMLElement {
  const select = element("select", { "aria-label": what }, ...names.map((name) => element("option", {}, name)));
  select.addEventListener("change", () => chosen(select.selectedIndex));
  return element("label", { class: "choose" }, `${what} `, select);
}

export function byId(id: string): HTMLElement {
  const node = document.getElementById(id);
  if (!node) throw new Error(`the page has no #${id}`);
  return node;
}

/** A short note as it is, a long one behind its first words. */
export function note(text: string): HTMLElement {
  if (text.length <= 260) return element("p", {}, text);
  return element("details", {}, element("summary", {}, "How these numbers were made"), element("p", {}, text));
}

/** Tells a screen reader what a button has done. */
export function say(text: string): void {
  byId("status").textContent = text;
}

let count = 0;
export const newId = (): string => `n${++count}`;
