// What the page does by itself: its theme, and how the chart writes numbers and times.
window.tickpipe = (() => {
  const KEY = "tickpipe-theme"; // "light" or "dark" where it was chosen; else as the system
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  function show(theme) {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  }
  function stored() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // a browser that keeps nothing
    }
  }
  show(stored());

  function toggle() {
    const usual = system.matches ? "dark" : "light";
    const other = (root.dataset.theme || usual) === "dark" ? "light" : "dark";
    show(other === usual ? null : other); // what the system has anyway is followed again
    try {
      if (other === usual) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, other);
    } catch {
      // then it lasts as long as the page
    }
  }

  const price = (value, decimals) =>
    value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });

  // Times come as ISO text in UTC: nothing to compute, only what to show of it.
  function time(at, seconds) {
    if (seconds >= 86400) return at.slice(5, 10);
    if (seconds >= 3600) return at.slice(5, 10) + " " + at.slice(11, 13) + "h";
    return at.slice(11, 16);
  }

  // Which times are written at the axis: every quarter of an hour, every hour, half a day, half a month.
  function round(at, seconds) {
    if (seconds >= 86400) return ["01", "15"].includes(at.slice(8, 10));
    if (seconds >= 3600) return ["00", "12"].includes(at.slice(11, 13));
    return seconds >= 300 ? at.slice(14, 16) === "00" : Number(at.slice(14, 16)) % 15 === 0;
  }

  function tip(found, decimals) {
    const candle = found.find((each) => each.seriesType === "candlestick");
    const bar = found.find((each) => each.seriesType === "bar");
    const at = found[0].axisValue.slice(0, 16).replace("T", " ") + " UTC";
    if (!candle || !Number.isFinite(candle.value[1])) return `<b>${at}</b><br>no prices`;
    const [open, close, low, high] = candle.value.slice(1).map((value) => price(value, decimals));
    const rows = [["open", open], ["high", high], ["low", low], ["close", close]];
    if (bar) rows.push([bar.seriesName, bar.value.toLocaleString("en-US", { maximumSignificantDigits: 6 })]);
    return `<b>${at}</b><table>${rows.map(([name, value]) => `<tr><td>${name}</td><td>${value}</td></tr>`).join("")}</table>`;
  }

  // The tip stands in the corner that the pointer is not in: it never covers the candle that it tells of.
  const aside = (at, size) => [at[0] < size.viewSize[0] / 2 ? size.viewSize[0] - size.contentSize[0] - 84 : 12, 12];

  return { toggle, price, time, round, tip, aside };
})();
