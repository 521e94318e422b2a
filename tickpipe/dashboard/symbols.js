// The list of symbols. Draws only the visible rows, of 500 symbols and more. Sorts and searches in the browser.
const ROW = 44; // pixels
const RESORT = 5000; // milliseconds between two sorts by change, so that rows do not jump
const SORTS = { name: "A–Z", rise: "Change ↓", fall: "Change ↑" };

export default {
  template: `
    <div class="symbols-head">
      <input class="search" type="search" v-model="query" :placeholder="'Search ' + count + ' symbols'"
             aria-label="Search symbols" data-testid="search" />
      <button class="plain" @click="next_sort" data-testid="sort" title="Sort">{{ sorts[sort] }}</button>
    </div>
    <div class="symbols-rows" ref="rows" @scroll="measure">
      <div class="symbols-space" :style="{ height: order.length * row + 'px' }">
        <button v-for="each in visible" :key="each.symbol" class="symbol" :class="{ selected: each.symbol === selected }"
                :style="{ transform: 'translateY(' + each.top + 'px)' }" :data-symbol="each.symbol"
                @click="$emit('pick', each.symbol)">
          <span class="symbol-name">{{ each.symbol }}</span>
          <svg class="spark" :class="each.direction" viewBox="0 0 64 22" preserveAspectRatio="none" aria-hidden="true">
            <polyline :points="each.points" />
          </svg>
          <span class="symbol-price">{{ each.text }}</span>
          <span class="symbol-change" :class="each.direction">{{ each.change }}</span>
        </button>
      </div>
      <div class="empty" v-if="!order.length">{{ count ? "no matching symbol" : "waiting for the first price …" }}</div>
    </div>`,
  props: { selected: String },
  data: () => ({ query: "", sort: "name", order: [], version: 0, count: 0, first: 0, fits: 20, row: ROW, sorts: SORTS }),
  created() {
    this.quotes = new Map(); // symbol → quote. Not reactive: a change increases `version`
    this.sorted = 0;
  },
  mounted() {
    this.observer = new ResizeObserver(() => this.measure());
    this.observer.observe(this.$refs.rows);
    const narrow = matchMedia("(max-width: 700px)"); // a narrow chart has fewer candles
    this.$emit("narrow", narrow.matches);
    narrow.addEventListener("change", () => this.$emit("narrow", narrow.matches));
  },
  unmounted() {
    this.observer.disconnect();
  },
  watch: {
    query: "reorder",
    sort: "reorder",
  },
  computed: {
    visible() {
      this.version;
      return this.order.slice(this.first, this.first + this.fits).map((symbol, index) => this.drawn(symbol, this.first + index));
    },
  },
  methods: {
    // Changed quotes: [symbol, price, price as text, change as text, change, minute, earlier closes by minute or null].
    patch(quotes) {
      for (const [symbol, price, text, changeText, change, minute, closes] of quotes) {
        const known = this.quotes.get(symbol) || { closes: new Map() };
        if (closes) known.closes = new Map(closes);
        known.closes.set(minute, price);
        this.quotes.set(symbol, Object.assign(known, { text, changeText, change, minute }));
      }
      const grown = this.quotes.size !== this.count;
      this.count = this.quotes.size;
      if (grown || (this.sort !== "name" && Date.now() - this.sorted > RESORT)) this.reorder();
      this.version++;
    },
    reorder() {
      const wanted = this.query.trim().toUpperCase();
      const found = [...this.quotes.keys()].filter((symbol) => symbol.toUpperCase().includes(wanted));
      const change = (symbol) => this.quotes.get(symbol).change ?? 0;
      if (this.sort === "name") found.sort();
      else found.sort((a, b) => (this.sort === "rise" ? change(b) - change(a) : change(a) - change(b)));
      this.order = found;
      this.sorted = Date.now();
      this.$nextTick(() => this.measure());
    },
    next_sort() {
      const names = Object.keys(SORTS);
      this.sort = names[(names.indexOf(this.sort) + 1) % names.length];
    },
    measure() {
      const rows = this.$refs.rows;
      this.first = Math.max(0, Math.floor(rows.scrollTop / ROW) - 2);
      this.fits = Math.ceil(rows.clientHeight / ROW) + 4;
    },
    drawn(symbol, index) {
      const { text, changeText, change, closes, minute } = this.quotes.get(symbol);
      // A minute after the newest one belongs to a tick whose time was ahead of its arrival.
      for (const other of closes.keys()) if (other <= minute - 30 || other > minute) closes.delete(other);
      const prices = [...closes.values()];
      const low = Math.min(...prices);
      const span = Math.max(...prices) - low || 1;
      const points = [...closes].map(([at, price]) => `${64 - (minute - at) * 2.2},${20 - ((price - low) / span) * 18}`);
      const direction = change > 0 ? "up" : change < 0 ? "down" : "";
      return { symbol, text, change: changeText, direction, points: points.join(" "), top: index * ROW };
    },
  },
};
