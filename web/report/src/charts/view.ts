/** What every kind of chart is drawn from, and what they share. */
import { element } from "../dom";
import { shortened, shown, tick } from "../format";
import type { Theme } from "../theme";

export interface View {
  theme: Theme;
  width: number;
  /** Series that the reader has switched off. */
  hidden: ReadonlySet<number>;
}

const kFont = 12;

export function valueAxis(view: View, name: string | undefined, more: object = {}): object {
  return {
    type: "value",
    name: name ?? "",
    nameTextStyle: { color: view.theme.soft, fontSize: kFont },
    axisLabel: { color: view.theme.soft, fontSize: kFont, hideOverlap: true, formatter: tick },
    axisLine: { show: false, onZero: false },
    axisTick: { show: false },
    splitLine: { lineStyle: { color: view.theme.line } },
    ...more,
  };
}

/** A horizontal value axis: its name stands below its middle, its lines are left out. */
export function acrossAxis(view: View, name: string | undefined, more: object = {}): object {
  return valueAxis(view, name, {
    nameLocation: "middle",
    nameGap: 28,
    splitNumber: view.width < 480 ? 3 : 6,
    splitLine: { show: false },
    axisLine: { show: true, onZero: false, lineStyle: { color: view.theme.line } },
    axisTick: { show: true, lineStyle: { color: view.theme.line } },
    ...more,
  });
}

/** A vertical value axis: its name stands above it, where it needs no turning. */
export const upAxis = (view: View, name: string | undefined, more: object = {}): object =>
  valueAxis(view, name, { nameLocation: "end", nameGap: 12, ...more, nameTextStyle: { color: view.theme.soft, fontSize: kFont, align: "left" } });

export function categoryAxis(view: View, labels: string[], name: string | undefined, more: object = {}): object {
  return {
    type: "category",
    data: labels,
    name: name ?? "",
    nameLocation: "middle",
    nameGap: 28,
    nameTextStyle: { color: view.theme.soft, fontSize: kFont },
    axisLabel: { color: view.theme.soft, fontSize: kFont, hideOverlap: true, formatter: (text: string) => shortened(text, view.width < 480 ? 16 : 28) },
    axisLine: { lineStyle: { color: view.theme.line } },
    axisTick: { show: false },
    ...more,
  };
}

export const grid = (more: object = {}): object => ({ left: 48, right: 16, top: 28, bottom: 44, ...more });

/** Tooltips are nodes, so that a title in them stays text. */
export function tooltip(view: View, words: (parameters: unknown) => [string, string][], more: object = {}): object {
  return {
    confine: true,
    transitionDuration: 0,
    backgroundColor: view.theme.back,
    borderColor: view.theme.line,
    textStyle: { color: view.theme.text, fontSize: 13 },
    formatter: (parameters: unknown) =>
      words(parameters).map(([name, value]) =>
        element("div", { class: "tip" }, element("span", {}, shortened(name, 60)), element("b", {}, value)),
      ),
    ...more,
  };
}

export const number = (value: unknown): string => shown(typeof value === "number" ? value : null);

/** One or several: ECharts hands over an item, or a list of what stands on one line. */
export interface Hovered {
  seriesName?: string;
  seriesIndex?: number;
  dataIndex?: number;
  name?: string;
  value?: unknown;
}
export const hovered = (parameters: unknown): Hovered[] =>
  (Array.isArray(parameters) ? parameters : [parameters]) as Hovered[];
