// The little picture of an answer's rhythm: one bar for each gap between tokens, taller for longer.

import { gapStats, pool } from "./protocol.js";

const BAR = 2;
const STEP = 3;
const milliseconds = (ms) => (ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Draw `gaps` (ms) on `canvas`. Live: the newest ones, flowing to the left. Else: the whole answer. */
export function drawTimeline(canvas, gaps, live) {
  canvas.hidden = gaps.length < 2;
  if (canvas.hidden) return;
  const count = Math.floor(canvas.clientWidth / STEP);
  const bars = live ? gaps.slice(-count) : pool(gaps, count);
  const stats = gapStats(live ? bars : gaps);
  if (!stats) return;
  const label = live ? "Time between tokens, live" : `Time between tokens: typically ${milliseconds(stats.median)}, 95 % under `
    + `${milliseconds(stats.p95)}, longest ${milliseconds(stats.longest)}`;
  if (canvas.title !== label) {
    canvas.title = label;
    canvas.setAttribute("aria-label", label);
  }
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const paint = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  paint.setTransform(scale, 0, 0, scale, 0, 0);
  paint.clearRect(0, 0, width, height);
  bars.forEach((gap, i) => {
    // Logarithmic from 1 ms to 3 s: an even stream is an even line at any speed, and a stall stands out.
    const tall = Math.max(2, Math.min(1, Math.log10(gap + 1) / 3.5) * height);
    paint.fillStyle = gap > Math.max(4 * stats.median, 60) ? style.outlineColor : style.color; // both resolved for the theme
    paint.fillRect(i * STEP, height - tall, BAR, tall);
  });
}
