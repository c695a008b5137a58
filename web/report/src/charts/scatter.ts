/** Points, a colour and a shape a series, some of them joined. */
import type { Option } from "../echarts";
import type { Scatter } from "../report";
import { colourOf, shapeOf } from "../theme";
import { acrossAxis, grid, hovered, number, tooltip, upAxis, type View } from "./view";

export const scatterHeight = (width: number): number => Math.min(560, Math.max(320, width * 0.7));

export function scatter(block: Scatter, view: View): Option {
  const whole = (v: number): number => Math.floor(v * 10) / 10, above = (v: number): number => Math.ceil(v * 10) / 10;
  const ends = { scale: true, min: (e: { min: number }) => whole(e.min), max: (e: { max: number }) => above(e.max) };
  const joins = (block.joins ?? []).flatMap((j) => [[j[0], j[1]], [j[2], j[3]], [null, null]]);
  return {
    animation: false,
    grid: grid(),
    xAxis: acrossAxis(view, block.x, ends),
    yAxis: upAxis(view, block.y, ends),
    tooltip: tooltip(view, (parameters) => {
      const p = hovered(parameters)[0], v = p?.value as [number, number, string?] | undefined;
      return [[p?.seriesName ?? "", v?.[2] ?? ""], [block.x ?? "x", number(v?.[0])], [block.y ?? "y", number(v?.[1])]];
    }, { trigger: "item" }),
    series: [
      ...(joins.length > 0 ? [{ type: "line", name: "joins", silent: true, showSymbol: false, connectNulls: false, data: joins, lineStyle: { color: view.theme.soft, width: 0.7 }, z: 1 }] : []),
      ...block.series.flatMap((s, i) => view.hidden.has(i) ? [] : [{
        type: "scatter",
        name: s.name,
        data: s.points,
        symbol: shapeOf(i),
        symbolSize: view.width < 480 ? 3.5 : 5,
        itemStyle: { color: colourOf(view.theme, i), opacity: 0.85 },
        emphasis: { disabled: true },
        z: 2,
      }]),
    ],
  };
}
