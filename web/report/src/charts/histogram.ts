/** Distributions over one another, as outlines, and a value to compare them with. */
import type { Option } from "../echarts";
import type { Histogram } from "../report";
import { colourOf, dashOf } from "../theme";
import { acrossAxis, grid, hovered, number, tooltip, upAxis, type View } from "./view";

export function histogram(block: Histogram, view: View): Option {
  const n = Math.max(1, block.series[0]?.values.length ?? 1);
  const edge = (i: number): number => block.low + ((block.high - block.low) * i) / n;
  const highest = Math.max(...block.series.flatMap((s) => s.values)) || 1;
  const outlines = block.series.flatMap((s, i) => {
    if (view.hidden.has(i)) return [];
    const color = colourOf(view.theme, i);
    return [{
      type: "line",
      name: s.name,
      step: "end",
      showSymbol: false,
      data: [...s.values.map((v, k) => [edge(k), v]), [block.high, s.values[n - 1] ?? 0]],
      lineStyle: { color, width: 2, type: dashOf(i) },
      itemStyle: { color },
      areaStyle: { color, opacity: 0.14 },
      emphasis: { disabled: true },
    }];
  });
  const mark = block.mark;
  return {
    animation: false,
    grid: grid(),
    xAxis: acrossAxis(view, block.x, { min: block.low, max: block.high, axisLabel: { color: view.theme.soft, fontSize: 12, hideOverlap: true, formatter: (v: number) => Number(v.toPrecision(3)).toString() } }),
    yAxis: upAxis(view, block.y),
    tooltip: tooltip(view, (parameters) => {
      const all = hovered(parameters).filter((p) => p.seriesName !== mark?.name), from = (all[0]?.value as number[] | undefined)?.[0];
      return [["from", number(from)], ...all.map((p): [string, string] => [p.seriesName ?? "", number((p.value as number[])[1])])];
    }, { trigger: "axis" }),
    series: [...outlines, ...(mark ? [{
      type: "line",
      name: mark.name,
      silent: true,
      showSymbol: false,
      data: [[mark.value, 0], [mark.value, highest * 1.02]],
      lineStyle: { color: view.theme.text, width: 1.5, type: [4, 3] },
      itemStyle: { color: view.theme.text },
      endLabel: { show: true, formatter: `${mark.name} ${number(mark.value)}`, color: view.theme.text, fontSize: 12, offset: [0, -8], align: mark.value > (block.low + block.high) / 2 ? "right" : "left" },
      emphasis: { disabled: true },
    }] : [])],
  };
}
