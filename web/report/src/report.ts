/** What the program says: tessera/study/report.h. */

export type Cell = string | number | boolean | null | undefined;
export type Point = [number, number, string?];

export interface Series {
  name: string;
  points: Point[];
  /** Set where two series share a colour: which one, and whether dashed. */
  colour?: number;
  dashed?: boolean;
}

interface Named {
  title: string;
  note?: string;
}
export interface Table extends Named {
  kind: "table";
  columns: string[];
  rows: Cell[][];
}
export interface Lines extends Named {
  kind: "lines";
  x?: string;
  y?: string;
  range?: [number, number];
  series: Series[];
}
export interface Scatter extends Named {
  kind: "scatter";
  x?: string;
  y?: string;
  series: Series[];
  /** Thin lines [x1, y1, x2, y2]. */
  joins?: [number, number, number, number][];
}
export interface Bars extends Named {
  kind: "bars";
  x?: string;
  y?: string;
  labels: string[];
  values?: number[];
  series?: { name: string; values: number[] }[];
  /** On top of one another instead of side by side. */
  stacked?: boolean;
}
/** Counts in equal bins from low to high. */
export interface Histogram extends Named {
  kind: "histogram";
  x?: string;
  y?: string;
  low: number;
  high: number;
  series: { name: string; values: number[] }[];
  mark?: { name: string; value: number };
}
export interface Interval {
  label: string;
  group?: string;
  value: number;
  low: number | null;
  high: number | null;
  /** A second value to see beside the first, as the unmatched beside the matched. */
  other?: number;
}
export interface Intervals extends Named {
  kind: "intervals";
  x?: string;
  /** A line where nothing differs; absent where the numbers are no differences. */
  zero?: boolean;
  /** What value and other are, where both are there. */
  names?: [string, string];
  rows: Interval[];
}
export interface Card {
  id: string;
  title?: string;
  picture?: string;
  mark?: string;
  note?: string;
}
export interface Cards extends Named {
  kind: "cards";
  groups: { label: string; items: Card[] }[];
}

export type Chart = Lines | Scatter | Bars | Histogram | Intervals;
export type Block = Chart | Table | Cards;

export interface Section {
  title: string;
  note?: string;
  /** Set where the reader sees one block at a time: what is chosen, as "Item". */
  choose?: string;
  blocks?: Block[];
}
export interface Report {
  title: string;
  subtitle?: string;
  tessera?: string;
  created?: string;
  pictures?: Record<string, string>;
  sections: Section[];
}

/** The data in the page; null where nobody filled it, so that a comment stands there. */
export function readReport(): Report | null {
  const text = document.getElementById("data")?.textContent ?? "";
  return text === "" || text.startsWith("/*") ? null : (JSON.parse(text) as Report);
}
