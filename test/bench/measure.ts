/** Numbers: percentiles, medians, and a table. */

export function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

export function median(values: readonly number[]): number {
  return percentile(
    values.toSorted((left, right) => left - right),
    0.5,
  );
}

export type Row = Record<string, string | number>;

/** A Markdown table of rows that have the same columns. */
export function table(rows: readonly Row[]): string {
  const [first] = rows;
  if (first === undefined) return "(nothing measured)";
  const columns = Object.keys(first);
  const line = (cells: readonly (string | number)[]) => `| ${cells.join(" | ")} |`;
  return [
    line(columns),
    line(columns.map(() => "---")),
    ...rows.map((row) => line(columns.map((column) => row[column] ?? ""))),
  ].join("\n");
}

export const round = (value: number, digits = 0): number => Number(value.toFixed(digits));
