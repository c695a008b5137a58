// Builds the page into one file: node build.mjs [FILE], default report.html beside this script.
// Equal sources and packages give equal bytes.
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "vite";

const here = dirname(fileURLToPath(import.meta.url));
const read = (...parts) => readFileSync(join(here, ...parts), "utf8");

const { output } = await build({
  root: here,
  configFile: false,
  envDir: false,
  logLevel: "warn",
  define: { "process.env.NODE_ENV": '"production"' },
  build: {
    write: false,
    target: "es2022",
    cssTarget: "chrome109",
    modulePreload: false,
    cssCodeSplit: false,
    rollupOptions: { input: join(here, "src/main.ts"), output: { format: "iife", codeSplitting: false } },
  },
});
const chunks = output.filter((part) => part.type === "chunk");
if (chunks.length !== 1) throw new Error(`wanted one script, found ${chunks.length}`);
const script = chunks[0].code.trim();
const style = output.filter((part) => part.fileName.endsWith(".css")).map((part) => part.source).join("").trim();
if (style === "") throw new Error("found no style");

// What the page may do: run this script, use this style, show pictures that are inside it.
const hash = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
const policy = [
  "default-src 'none'",
  `script-src ${hash(script)}`,
  `style-src ${hash(style)}`,
  "style-src-attr 'unsafe-inline'", // the SVG painter sets style attributes
  "img-src data:",
  "base-uri 'none'",
  "form-action 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types default",
].join("; ");

const licences = [["echarts", "NOTICE"], ["echarts", "LICENSE"], ["zrender", "LICENSE"], ["tslib", "LICENSE.txt"]]
  .map(([name, file]) => {
    const { version } = JSON.parse(read("node_modules", name, "package.json"));
    return `==== ${name} ${version}: ${file} ====\n\n${read("node_modules", name, file).trim()}\n`;
  })
  .join("\n");
const text = (value) => value.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("\r", "");

const parts = {
  POLICY: `<meta http-equiv="Content-Security-Policy" content="${policy}">`,
  STYLE: `<style>${style}</style>`,
  LICENCES: text(licences),
  SCRIPT: `<script>${script}</script>`,
};
const page = read("index.html").replace(/<!--([A-Z]+)-->/g, (_, name) => parts[name]);

// The script stands in HTML, in a C++ raw string, and passes through CMake's @NAME@.
for (const [what, pattern] of [
  ["the end of a script", /<\/script|<!--/i],
  ["a word that CMake would replace", /@[A-Za-z0-9/_.+-]+@/],
  ["the end of the C++ string", /\)PAGE"/],
  ["the place of the data", /\/\*DATA\*\//],
]) {
  if (pattern.test(script) || pattern.test(style)) throw new Error(`the built script has ${what}: ${pattern.exec(script + style)[0]}`);
}
if (/@[A-Za-z0-9/_.+-]+@/.test(page)) throw new Error("the page has a word that CMake would replace");

const place = resolve(process.argv[2] ?? join(here, "report.html"));
writeFileSync(place, page);
console.log(`${place}: ${page.length} characters, ${Buffer.byteLength(script)} bytes of script`);
