/** Values by name; lying where the names are words, so that they can be read. */
import type { Option } from "../echarts";
import type { Bars } from "../report";
import { colourOf } from "../theme";
import { acrossAxis, categoryAxis, grid, hovered, number, tooltip, upAxis, type View } from "./view";

export const barSeries = (block: Bars): { name: string; values: number[] }[] =>
  block.series ?? [{ name: block.y ?? "value", values: block.values ?? [] }];

const lying = (block: Bars): boolean => block.stacked || block.labels.some((label) => label.length > 5 && Number.isNaN(Number(label)));

export function barsHeight(block: Bars): number {
  const thick = block.stacked ? 1 : Math.max(1, barSeries(block).length * 0.7);
  return lying(block) ? Math.max(140, 80 + block.labels.length * 26 * thick) : 280;
}

export function bars(block: Bars, view: View): Option {
  const flat = lying(block);
  const longest = Math.max(...block.labels.map((l) => Math.min(l.length, view.width < 480 ? 16 : 28)));
  const names = categoryAxis(view, block.labels, block.x, flat
    ? { inverse: true, name: "", axisLabel: { color: view.theme.soft, fontSize: 12, interval: 0, width: longest * 7 + 10, overflow: "truncate" } }
    : {});
  const single = barSeries(block).length === 1;
  return {
    animation: false,
    grid: grid(flat ? { left: longest * 7 + 24, top: 8 } : {}),
    xAxis: flat ? acrossAxis(view, block.y, { min: 0, ...(block.stacked ? { max: 1 } : {}) }) : names,
    yAxis: flat ? names : upAxis(view, block.y),
    tooltip: tooltip(view, (parameters) => {
      const all = hovered(parameters);
      const value = (p: (typeof all)[number]): [string, string] => [single ? block.y ?? "value" : p.seriesName ?? "", number(p.value)];
      return [[block.labels[all[0]?.dataIndex ?? 0] ?? "", ""], ...all.map(value)];
    }, { trigger: "axis", axisPointer: { type: "shadow" } }),
    series: barSeries(block).flatMap((s, i) => view.hidden.has(i) ? [] : [{
      type: "bar",
      name: s.name,
      data: s.values,
      ...(block.stacked ? { stack: "all" } : {}),
      barMaxWidth: 34,
      barCategoryGap: "30%",
      // A line around each keeps neighbours apart without their colours.
      itemStyle: { color: colourOf(view.theme, i), borderColor: view.theme.back, borderWidth: block.stacked ? 1 : 0 },
      emphasis: { disabled: true },
    }]),
  };
}
