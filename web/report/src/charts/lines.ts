/** Curves over epochs. */
import type { Option } from "../echarts";
import type { Lines } from "../report";
import { lineDash } from "../swatch";
import { colourOf, shapeOf } from "../theme";
import { acrossAxis, grid, hovered, number, tooltip, upAxis, type View } from "./view";

const kMostDots = 150;

export function lines(block: Lines, view: View): Option {
  const whole = block.series.every((s) => s.points.every((p) => Number.isInteger(p[0])));
  const [min, max] = block.range ?? [undefined, undefined];
  return {
    animation: false,
    grid: grid(),
    xAxis: acrossAxis(view, block.x, { min: "dataMin", max: "dataMax", ...(whole ? { minInterval: 1 } : {}) }),
    yAxis: upAxis(view, block.y, { scale: true, min, max }),
    tooltip: tooltip(view, (parameters) => {
      const all = hovered(parameters), at = all[0]?.value as number[] | undefined;
      return [[block.x ?? "x", number(at?.[0])], ...all.map((p): [string, string] => [p.seriesName ?? "", number((p.value as number[])[1])])];
    }, { trigger: "axis", axisPointer: { type: "line", lineStyle: { color: view.theme.soft }, label: { show: false } } }),
    series: block.series.flatMap((s, i) => {
      if (view.hidden.has(i)) return [];
      const colour = s.colour ?? i, color = colourOf(view.theme, colour);
      return [{
        type: "line",
        name: s.name,
        data: s.points.map((p) => [p[0], p[1]]),
        showSymbol: s.points.length <= kMostDots,
        symbol: shapeOf(colour),
        symbolSize: 6,
        lineStyle: { color, width: 2, type: lineDash(i, s.dashed) },
        itemStyle: { color },
        emphasis: { disabled: true },
      }];
    }),
  };
}
