/** Light or dark: what the system asks for, until the reader presses the button. */
import { byId } from "./dom";

export interface Theme {
  text: string;
  soft: string;
  line: string;
  back: string;
  colours: string[];
}

const kColours = 7;
const kDashes: (number[] | "solid")[] = ["solid", [7, 3], [2, 3], [9, 3, 2, 3], [4, 4], [12, 4], [1, 4]];
const kShapes = ["circle", "rect", "triangle", "diamond", "emptyCircle", "emptyRect", "emptyTriangle"];
const listeners: (() => void)[] = [];

export function theme(): Theme {
  const style = getComputedStyle(document.documentElement);
  const of = (name: string): string => style.getPropertyValue(name).trim();
  return {
    text: of("--text"), soft: of("--soft"), line: of("--line"), back: of("--back"),
    colours: Array.from({ length: kColours }, (_, i) => of(`--c${i}`)),
  };
}

/** Colour, dash and shape of series i: no two of the first 49 share colour and dash. */
export const colourOf = (of: Theme, i: number): string => of.colours[i % kColours] ?? of.text;
export const dashOf = (i: number): number[] | "solid" => kDashes[(i + Math.floor(i / kColours)) % kDashes.length] ?? "solid";
export const shapeOf = (i: number): string => kShapes[(i + Math.floor(i / kColours)) % kShapes.length] ?? "circle";

export const onTheme = (redraw: () => void): number => listeners.push(redraw);

export function followTheme(): void {
  const dark = matchMedia("(prefers-color-scheme: dark)"), button = byId("theme");
  const set = (on: boolean): void => {
    document.documentElement.dataset["theme"] = on ? "dark" : "light";
    button.setAttribute("aria-pressed", String(on));
    for (const redraw of listeners) redraw();
  };
  set(dark.matches);
  dark.addEventListener("change", (event) => set(event.matches));
  button.addEventListener("click", () => set(button.getAttribute("aria-pressed") !== "true"));
}
