/** Numbers as people read them. */
export function bytes(n: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; n >= 1024 && unit < units.length - 1; unit++) n /= 1024;
  return `${n.toFixed(unit === 0 || n >= 100 ? 0 : 1)} ${units[unit] ?? ""}`;
}

export function count(n: number): string {
  return n.toLocaleString("en");
}

/** 2750000: "2.8 million". */
export function parameters(n: number): string {
  return n >= 1e9 ? `${(n / 1e9).toFixed(1)} billion` : `${(n / 1e6).toFixed(1)} million`;
}

export function rate(n: number): string {
  return n >= 100 || n === 0 ? count(Math.round(n)) : n.toFixed(1);
}

/** Bytes a second, as links and memories are sold: "1.25 GB/s". */
export function bandwidth(n: number): string {
  return n >= 1e11 ? `${count(Math.round(n / 1e9))} GB/s` : n >= 1e9 ? `${(n / 1e9).toPrecision(3)} GB/s` : `${(n / 1e6).toPrecision(3)} MB/s`;
}

/** One way of a link, of which microseconds are known. */
export function latency(us: number): string {
  return us >= 10000 ? `${Math.round(us / 1000)} ms` : us >= 1000 ? `${(us / 1000).toFixed(1)} ms` : `${Math.max(Math.round(us), 1)} µs`;
}

export function seconds(ms: number): string {
  return ms < 995 ? `${Math.max(Math.round(ms), 1)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** The two greatest parts of a time: 93784000 is "1 d 2 h". */
export function span(ms: number): string {
  const all: [number, string][] = [
    [Math.floor(ms / 86400000), "d"],
    [Math.floor(ms / 3600000) % 24, "h"],
    [Math.floor(ms / 60000) % 60, "min"],
    [Math.floor(ms / 1000) % 60, "s"],
  ];
  const first = all.findIndex(([n]) => n > 0);
  const parts = first < 0 ? all.slice(-1) : all.slice(first, first + 2);
  return parts.map(([n, unit]) => `${n} ${unit}`).join(" ");
}
