/** Comma-separated text of numbers, and its download. */
import { element } from "./dom";
import type { Numbers } from "./numbers";
import type { Cell } from "./report";

function field(value: Cell): string {
  let text = value === null || value === undefined ? "" : String(value);
  if (typeof value !== "number" && /^[=+\-@\t\r]/.test(text)) text = "'" + text; // no formula for a spreadsheet
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export const csv = (data: Numbers): string =>
  [data.columns, ...data.rows].map((row) => row.map(field).join(",") + "\n").join("");

export function save(name: string, text: string): void {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
