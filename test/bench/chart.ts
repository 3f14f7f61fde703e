/** A bar chart as SVG, for the README. */

const BAR = { height: 22, gap: 8, left: 230, width: 420 };

export function barChart(title: string, bars: readonly { label: string; value: number }[]): string {
  const max = Math.max(...bars.map(({ value }) => value), 1e-9);
  const height = 44 + bars.length * (BAR.height + BAR.gap);
  const lines = bars.map(({ label, value }, index) => {
    const y = 36 + index * (BAR.height + BAR.gap);
    const width = Math.max(1, (value / max) * BAR.width);
    return [
      `<text x="${BAR.left - 10}" y="${y + 15}" text-anchor="end">${escape(label)}</text>`,
      `<rect x="${BAR.left}" y="${y}" width="${width.toFixed(1)}" height="${BAR.height}" rx="3" fill="#4c7bd9"/>`,
      `<text x="${BAR.left + width + 8}" y="${y + 15}">${value.toLocaleString("en")}</text>`,
    ].join("");
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="760" height="${height}" font-family="sans-serif" font-size="13" fill="#666">`,
    `<text x="10" y="20" font-size="15">${escape(title)}</text>`,
    ...lines,
    "</svg>",
    "",
  ].join("\n");
}

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
