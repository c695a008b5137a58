/** Numbers as people read them. */
import type { Cell } from "./report";

export function shown(value: Cell): string {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5 ? value.toFixed(4) : value.toPrecision(3);
}

/** Labels of an axis, without the dust of binary fractions. */
export const tick = (value: number): string => Number(value.toPrecision(6)).toString();

export const shortened = (text: string, most: number): string =>
  text.length > most ? text.slice(0, most - 1) + "…" : text;

/** "Metrics by slice" -> "metrics-by-slice". */
export const slug = (title: string): string =>
  title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "data";
