/** What stands for a series in its legend: colour and dash, or colour and shape, as the chart has them. */
import { colourOf, dashOf, onTheme, theme } from "./theme";

const kSvg = "http://www.w3.org/2000/svg";
const kShapes = ["●", "■", "▲", "◆", "○", "□", "△"];

export interface Look {
  colour: number;
  as: "dash" | "shape" | "square" | "circle";
  dash: number[] | "solid";
}

function line(of: Look): SVGElement {
  const svg = document.createElementNS(kSvg, "svg"), stroke = document.createElementNS(kSvg, "line");
  for (const [name, value] of Object.entries({ width: "30", height: "10", viewBox: "0 0 30 10" })) svg.setAttribute(name, value);
  for (const [name, value] of Object.entries({ x1: "0", x2: "30", y1: "5", y2: "5", "stroke-width": "2.5" })) stroke.setAttribute(name, value);
  if (of.dash !== "solid") stroke.setAttribute("stroke-dasharray", of.dash.join(" "));
  stroke.setAttribute("stroke", "currentColor");
  svg.append(stroke);
  return svg;
}

export function swatch(of: Look): HTMLElement {
  const out = document.createElement("span");
  out.className = "swatch";
  out.setAttribute("aria-hidden", "true");
  if (of.as === "dash") out.append(line(of));
  else out.textContent = of.as === "square" ? "■" : of.as === "circle" ? "●" : kShapes[(of.colour + Math.floor(of.colour / kShapes.length)) % kShapes.length] ?? "●";
  const paint = (): void => { out.style.color = colourOf(theme(), of.colour); };
  onTheme(paint);
  paint();
  return out;
}

export const lineDash = (i: number, dashed: boolean | undefined): number[] | "solid" =>
  dashed === undefined ? dashOf(i) : dashed ? [7, 4] : "solid";
