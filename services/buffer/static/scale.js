// The arithmetic of the charts: ranges, round ticks, averages. Pure.

/** Lowest and highest of the values, widened a little; `include` are values that must be inside. */
export function range(values, include = []) {
  const all = [...values, ...include].filter(Number.isFinite);
  const low = Math.min(...all);
  const high = Math.max(...all);
  if (low === 0 && high === 0) return [0, 1];
  const room = high > low ? (high - low) * 0.08 : Math.abs(high) * 0.1 || 1;
  return [include.includes(low) ? low : low - room, include.includes(high) ? high : high + room];
}

/** Round numbers inside [low, high], about `count` of them. */
export function ticks(low, high, count, whole = false) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw * 0.999);
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) {
    found.push(Math.abs(value) < step * 1e-6 ? 0 : value);
  }
  return found;
}

/** A tick as short as it can be: 0.25, 12, 1.5k, 2M. */
export function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return String(+value.toPrecision(3));
}

/** At most `most` points, each the average of its neighbours. */
export function thin(points, most) {
  if (points.length <= most) return points;
  const width = points.length / most;
  const mean = (part, name) => part.reduce((sum, point) => sum + point[name], 0) / part.length;
  return Array.from({ length: most }, (_, index) => {
    const part = points.slice(Math.floor(index * width), Math.floor((index + 1) * width));
    return { x: part.at(-1).x, y: mean(part, "y") };
  });
}

/** The trend under noisy points: each is the mean of itself and up to `window` - 1 before it. */
export function trend(points, window) {
  let sum = 0;
  return points.map((point, index) => {
    sum += point.y - (index >= window ? points[index - window].y : 0);
    return { x: point.x, y: sum / Math.min(window, index + 1) };
  });
}
