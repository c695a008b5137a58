/** The numbers of a chart as a table: what the table view and the CSV show. */
import type { Cell, Chart, Table } from "./report";

export interface Numbers {
  columns: string[];
  rows: Cell[][];
}

export function numbers(block: Chart | Table): Numbers {
  switch (block.kind) {
    case "table":
      return { columns: block.columns, rows: block.rows };
    case "lines":
    case "scatter": {
      const named = block.series.some((s) => s.points.some((p) => p.length > 2));
      return {
        columns: ["series", block.x || "x", block.y || "value", ...(named ? ["id"] : [])],
        rows: block.series.flatMap((s) => s.points.map((p) => [s.name, ...p])),
      };
    }
    case "bars": {
      const series = block.series ?? [{ name: block.y || "value", values: block.values ?? [] }];
      return {
        columns: [block.x || "label", ...series.map((s) => s.name)],
        rows: block.labels.map((label, i) => [label, ...series.map((s) => s.values[i])]),
      };
    }
    case "histogram": {
      const n = block.series[0]?.values.length ?? 0;
      const edge = (i: number): number => block.low + ((block.high - block.low) * i) / n;
      return {
        columns: [`${block.x || "value"} from`, "to", ...block.series.map((s) => s.name)],
        rows: Array.from({ length: n }, (_, i) => [edge(i), edge(i + 1), ...block.series.map((s) => s.values[i])]),
      };
    }
    case "intervals": {
      const grouped = block.rows.some((r) => r.group), paired = block.rows.some((r) => r.other !== undefined);
      const [first, second] = block.names ?? ["mean", "other"];
      return {
        columns: ["what", ...(grouped ? ["metric"] : []), first, "low", "high", ...(paired ? [second] : [])],
        rows: block.rows.map((r) => [
          r.label, ...(grouped ? [r.group] : []), r.value, r.low, r.high, ...(paired ? [r.other] : []),
        ]),
      };
    }
  }
}
