/** A table in a region of its own that scrolls, by keyboard too; columns sort. */
import { element, say } from "./dom";
import { shown } from "./format";
import type { Numbers } from "./numbers";
import type { Cell } from "./report";

const kMost = 1000;

function before(a: Cell, b: Cell): number {
  if (typeof a === "number" && typeof b === "number") return a - b;
  const gaps = Number(a === null || a === undefined || a === "") - Number(b === null || b === undefined || b === "");
  return gaps || String(a).localeCompare(String(b), "en", { numeric: true });
}

function body(rows: Cell[][], numeric: boolean[]): HTMLTableSectionElement {
  const out = element("tbody");
  for (const row of rows.slice(0, kMost)) {
    out.append(element("tr", {}, ...row.map((v, c) => element("td", numeric[c] ? { class: "number" } : {}, shown(v)))));
  }
  return out;
}

export function table(data: Numbers, title: string): HTMLElement {
  const numeric = data.columns.map((_, c) =>
    data.rows.some((row) => typeof row[c] === "number") && data.rows.every((row) => typeof row[c] !== "string"));
  let rows = body(data.rows, numeric);
  const heads = data.columns.map((name, column) => {
    const sort = element("button", { type: "button", title: "Sort" }, name, element("span", { "aria-hidden": "true" }));
    const head = element("th", { scope: "col", ...(numeric[column] ? { class: "number" } : {}) }, sort);
    sort.addEventListener("click", () => {
      const way = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", way);
      const sign = way === "ascending" ? 1 : -1;
      const sorted = body([...data.rows].sort((a, b) => sign * before(a[column], b[column])), numeric);
      rows.replaceWith(sorted);
      rows = sorted;
      say(`${title} sorted by ${name}, ${way}`);
    });
    return head;
  });
  const place = element(
    "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
    element("table", {}, element("thead", {}, element("tr", {}, ...heads)), rows),
  );
  const left = data.rows.length - kMost;
  return left > 0
    ? element("div", {}, place, element("p", {}, `The first ${kMost} of ${data.rows.length} rows; the CSV has all.`))
    : place;
}
