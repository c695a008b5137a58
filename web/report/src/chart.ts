/** A chart with what belongs to it: series to switch, its numbers as a table, a download. */
import { bars, barSeries, barsHeight } from "./charts/bars";
import { histogram } from "./charts/histogram";
import { intervals, intervalsHeight } from "./charts/intervals";
import { lines } from "./charts/lines";
import { scatter, scatterHeight } from "./charts/scatter";
import type { View } from "./charts/view";
import { csv, save } from "./csv";
import { button, chooser, element, newId, note, say } from "./dom";
import { init, type Option, type Painter } from "./echarts";
import { slug } from "./format";
import { numbers } from "./numbers";
import type { Chart, Interval, Table } from "./report";
import { lineDash, swatch, type Look } from "./swatch";
import { table } from "./table";
import { onTheme, theme } from "./theme";

const redraws: (() => void)[] = [];

/** Draws every chart; once the page stands and has its width. */
export function drawAll(): void {
  for (const redraw of redraws) redraw();
}

/** The rows of an interval chart that are shown: one group at a time. */
const rowsOf = (block: Chart, group: string | undefined): Interval[] =>
  block.kind === "intervals" ? block.rows.filter((r) => group === undefined || r.group === group) : [];

function option(block: Chart, view: View, group: string | undefined): Option {
  switch (block.kind) {
    case "lines": return lines(block, view);
    case "scatter": return scatter(block, view);
    case "bars": return bars(block, view);
    case "histogram": return histogram(block, view);
    case "intervals": return intervals(block, rowsOf(block, group), view);
  }
}

function height(block: Chart, width: number, group: string | undefined): number {
  switch (block.kind) {
    case "lines": return 300;
    case "histogram": return 280;
    case "scatter": return scatterHeight(width);
    case "bars": return barsHeight(block);
    case "intervals": return intervalsHeight(rowsOf(block, group));
  }
}

/** The series that have a switch, and how they look. */
function switches(block: Chart): ({ name: string } & Look)[] {
  switch (block.kind) {
    case "intervals": return [];
    case "bars": return barSeries(block).map((s, i) => ({ name: s.name, colour: i, as: "square", dash: "solid" }));
    case "scatter": return block.series.map((s, i) => ({ name: s.name, colour: i, as: "shape", dash: "solid" }));
    case "histogram": return block.series.map((s, i) => ({ name: s.name, colour: i, as: "dash", dash: lineDash(i, undefined) }));
    case "lines": return block.series.map((s, i) => ({ name: s.name, colour: s.colour ?? i, as: "dash", dash: lineDash(i, s.dashed) }));
  }
}

function legend(block: Chart, hidden: Set<number>, redraw: () => void): HTMLElement | null {
  const all = switches(block);
  if (all.length < 2) return null;
  const out = element("div", { class: "legend", role: "group", "aria-label": `Series of ${block.title}` });
  const buttons = all.map((series, i) => {
    const one = button("", { "aria-pressed": "true" }, () => {
      if (!hidden.delete(i)) hidden.add(i);
      if (hidden.size === all.length) hidden.clear();
      buttons.forEach((b, k) => b.setAttribute("aria-pressed", String(!hidden.has(k))));
      redraw();
    });
    one.append(swatch(series), series.name);
    return one;
  });
  out.append(...buttons);
  return out;
}

function canvas(block: Chart, into: HTMLElement): void {
  const hidden = new Set<number>();
  const groups = block.kind === "intervals" ? [...new Set(block.rows.flatMap((r) => (r.group ? [r.group] : [])))] : [];
  let group = groups.length > 1 ? groups[0] : undefined;
  const place = element("div", { class: "plot", role: "img", "aria-label": `${block.title}: a chart; its numbers are in the table that the button Table opens` });
  let painter: Painter | undefined;
  let width = 0;
  const redraw = (): void => {
    width = Math.floor(place.clientWidth);
    if (width === 0) return;
    const tall = height(block, width, group);
    place.style.height = `${tall}px`;
    painter ??= init(place, null, { renderer: "svg", width, height: tall });
    painter.resize({ width, height: tall });
    painter.setOption(option(block, { theme: theme(), width, hidden }, group), true);
  };
  redraws.push(redraw);
  onTheme(redraw);
  new ResizeObserver(() => { if (Math.floor(place.clientWidth) !== width) redraw(); }).observe(place);
  if (groups.length > 1) into.append(chooser("Metric", groups, (i) => { group = groups[i]; redraw(); }));
  into.append(place);
  const switched = legend(block, hidden, redraw);
  if (switched) into.append(switched);
  if (block.kind === "intervals" && block.names && block.rows.some((r) => r.other !== undefined)) {
    const of = (as: "circle" | "square", colour: number, name: string): HTMLElement =>
      element("span", {}, swatch({ as, colour, dash: "solid" }), name);
    into.append(element("p", { class: "key" }, of("circle", 1, `${block.names[0]}, with its interval`), of("square", 2, block.names[1])));
  }
}

export function figure(block: Chart | Table): HTMLElement {
  const title = newId();
  const out = element("figure", { class: "figure", "data-kind": block.kind, "aria-labelledby": title });
  out.append(element("h3", { id: title }, block.title));
  if (block.note) out.append(note(block.note));
  const data = numbers(block);
  const tools = element("div", { class: "tools" });
  const download = button("CSV", { "aria-label": `Save ${block.title} as CSV` }, () => {
    save(`${slug(block.title)}.csv`, csv(data));
    say(`${block.title} saved as CSV`);
  });
  if (block.kind === "table") {
    out.append(table(data, block.title), tools);
    tools.append(download);
    return out;
  }
  canvas(block, out);
  const holder = element("div", { id: newId(), hidden: "" });
  const toggle = button("Table", { "aria-expanded": "false", "aria-controls": holder.id, "aria-label": `Table of ${block.title}` }, () => {
    if (!holder.firstChild) holder.append(table(data, `Numbers of ${block.title}`));
    holder.hidden = !holder.hidden;
    toggle.setAttribute("aria-expanded", String(!holder.hidden));
  });
  tools.append(toggle, download);
  out.append(tools, holder);
  return out;
}
