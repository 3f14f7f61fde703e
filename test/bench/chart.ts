/** A bar chart as SVG, for the README. */

const BAR = { height: 22, gap: 8, width: 420 };
/** Of the fonts that browsers take for sans-serif, at 13 pixels, generously. */
const CHARACTER_WIDTH = 7.2;
const VALUE_WIDTH = 70;

/**
 * @param full what a bar of the full width stands for; left out, the largest value
 * @returns the text of the file
 */
export function barChart(
  title: string,
  bars: readonly { label: string; value: number }[],
  full = Math.max(...bars.map(({ value }) => value), 1e-9),
): string {
  const left = 20 + Math.ceil(CHARACTER_WIDTH * Math.max(...bars.map(({ label }) => label.length)));
  const total = Math.max(left + BAR.width + VALUE_WIDTH, 20 + CHARACTER_WIDTH * 1.15 * title.length);
  const height = 44 + bars.length * (BAR.height + BAR.gap);
  const lines = bars.map(({ label, value }, index) => {
    const y = 36 + index * (BAR.height + BAR.gap);
    const width = Math.max(1, Math.min(1, value / full) * BAR.width);
    return [
      `<text x="${left - 10}" y="${y + 15}" text-anchor="end">${escape(label)}</text>`,
      `<rect x="${left}" y="${y}" width="${width.toFixed(1)}" height="${BAR.height}" rx="3" fill="#4c7bd9"/>`,
      `<text x="${(left + width + 8).toFixed(1)}" y="${y + 15}">${value.toLocaleString("en")}</text>`,
    ].join("");
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${Math.ceil(total)}" height="${height}" font-family="sans-serif" font-size="13" fill="#666">`,
    `<text x="10" y="20" font-size="15">${escape(title)}</text>`,
    ...lines,
    "</svg>",
    "",
  ].join("\n");
}

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
