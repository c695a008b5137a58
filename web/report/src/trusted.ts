/**
 * The page's policy has the browser refuse any text handed to it as markup. ECharts empties nodes by
 * setting innerHTML to "", which is allowed; everything else is an error.
 */
interface Policies {
  createPolicy(name: string, rules: { createHTML(text: string): string }): unknown;
}

export function allowNoMarkup(): void {
  const policies = (globalThis as { trustedTypes?: Policies }).trustedTypes;
  policies?.createPolicy("default", {
    createHTML(text) {
      if (text !== "") throw new TypeError("markup from text is not allowed here");
      return text;
    },
  });
}
