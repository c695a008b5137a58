/** A value with its interval a row, named above its line so that long names fit a phone. */
import type { Option } from "../echarts";
import type { Interval, Intervals } from "../report";
import { shortened, shown } from "../format";
import { colourOf } from "../theme";
import { acrossAxis, hovered, tooltip, type View } from "./view";

const kRow = 40;
export const intervalsHeight = (rows: Interval[]): number => rows.length * kRow + 64;

interface Coordinates {
  coord(point: [number, number]): [number, number];
  value(dimension: number): number;
}

export function intervals(block: Intervals, rows: Interval[], view: View): Option {
  const { theme } = view;
  const known = rows.flatMap((r) => [r.value, r.low, r.high, r.other]).filter((v) => typeof v === "number");
  const all = block.zero ? [...known, 0] : known;
  const low = Math.min(...all), high = Math.max(...all), pad = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
  const [first, second] = block.names ?? ["mean", "other"];
  const line = (x1: number, y1: number, x2: number, y2: number, stroke: string, lineWidth: number, lineDash?: number[]): object =>
    ({ type: "line", silent: true, shape: { x1, y1, x2, y2 }, style: { stroke, lineWidth, ...(lineDash ? { lineDash } : {}) } });
  const row = (_: unknown, api: Coordinates): object => {
    const i = api.value(0), of = rows[i];
    if (!of) return { type: "group", children: [] };
    const at = (v: number): [number, number] => api.coord([v, i]);
    const [x, middle] = at(of.value), y = middle + 8;
    const ends = typeof of.low === "number" && typeof of.high === "number" ? [at(of.low)[0], at(of.high)[0]] as const : null;
    return {
      type: "group",
      children: [
        ...(block.zero ? [line(at(0)[0], y - kRow / 2 - 8, at(0)[0], y + kRow / 2 - 8, theme.soft, 1, [3, 3])] : []),
        { type: "text", silent: true, style: { text: shortened(of.label, Math.floor(view.width / 7)), x: 12, y: y - 14, fill: theme.text, fontSize: 12, verticalAlign: "middle", stroke: theme.back, lineWidth: 3 } },
        ...(ends ? [
          line(ends[0], y, ends[1], y, colourOf(theme, 0), 3),
          line(ends[0], y - 5, ends[0], y + 5, colourOf(theme, 0), 2),
          line(ends[1], y - 5, ends[1], y + 5, colourOf(theme, 0), 2),
        ] : []),
        { type: "circle", shape: { cx: x, cy: y, r: 5 }, style: { fill: colourOf(theme, 1) } },
        ...(of.other === undefined ? [] : [{ type: "rect", shape: { x: at(of.other)[0] - 5, y: y - 5, width: 10, height: 10 }, style: { fill: colourOf(theme, 2) } }]),
      ],
    };
  };
  return {
    animation: false,
    grid: { left: 12, right: 16, top: 4, bottom: 44 },
    xAxis: acrossAxis(view, block.x, { min: low - pad, max: high + pad, axisLabel: { color: theme.soft, fontSize: 12, hideOverlap: true, showMinLabel: false, showMaxLabel: false, formatter: (v: number) => Number(v.toPrecision(3)).toString() } }),
    yAxis: { type: "category", inverse: true, show: false, data: rows.map((_, i) => i) },
    tooltip: tooltip(view, (parameters) => {
      const of = rows[hovered(parameters)[0]?.dataIndex ?? -1];
      if (!of) return [];
      return [[of.label, ""], [first, shown(of.value)], ["from", shown(of.low)], ["to", shown(of.high)],
        ...(of.other === undefined ? [] : [[second, shown(of.other)] as [string, string]])];
    }, { trigger: "item" }),
    series: [{ type: "custom", renderItem: row, clip: false, data: rows.map((r, i) => [i, r.value]), encode: { y: 0, x: 1 } }],
  };
}
