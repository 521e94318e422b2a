// The page's theme, and the chart's formats of numbers and times.
window.tickpipe = (() => {
  const KEY = "tickpipe-theme"; // "light" or "dark"; absent: the system's theme
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
      return null; // the browser denies storage
    }
  }
  show(stored());

  function toggle() {
    const preferred = system.matches ? "dark" : "light";
    const other = (root.dataset.theme || preferred) === "dark" ? "light" : "dark";
    show(other === preferred ? null : other); // the system's own theme needs no override
    try {
      if (other === preferred) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, other);
    } catch {
      // the choice lasts until the page is closed
    }
  }

  const price = (value, decimals) =>
    value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });

  // `at` is ISO text in UTC. `seconds` is the width of a candle.
  function time(at, seconds) {
    if (seconds >= 86400) return at.slice(5, 10);
    if (seconds >= 3600) return at.slice(5, 10) + " " + at.slice(11, 13) + "h";
    return at.slice(11, 16);
  }

  // Whether the axis has a label here: every quarter of an hour, every hour, twice a day, twice a month.
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

  // The tip is in the corner opposite to the pointer, so that it does not cover its candle.
  const aside = (at, size) => [at[0] < size.viewSize[0] / 2 ? size.viewSize[0] - size.contentSize[0] - 84 : 12, 12];

  return { toggle, price, time, round, tip, aside };
})();
