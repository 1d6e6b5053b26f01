// The explorer of features: the same in a page of its own and in JupyterLab.
// What a file says becomes text of the page and nothing else: no string is ever read as HTML.

const ROW = 50;
const RAMP = [
  [226, 236, 245],
  [158, 202, 225],
  [49, 130, 189],
  [8, 48, 107],
];
const OFF = "#dcdfe3";
const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };
const UNKNOWN = 255;
const ENRICHED = 0.7;

// ---------------------------------------------------------------------------------------------- reading blocks

async function unpack(bytes) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This browser is too old to open the data. Use one of 2023 or later.");
  }
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = new DataView(raw.buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(raw.subarray(4, 4 + size)));
  const block = { meta: head.meta };
  let at = 4 + size;
  for (const [name, type, length] of head.arrays) {
    const width = +type[1],
      from = at;
    let found = null;
    Object.defineProperty(block, name, { get: () => (found ??= whole(raw, from, type, length, width)) });
    at += length * width;
  }
  return block;
}

// Bytes of numbers lie apart: all first ones, then all second ones.
function whole(raw, from, type, length, width) {
  if (width === 1) return raw.subarray(from, from + length);
  const bytes = new Uint8Array(length * width);
  for (let k = 0; k < width; k++) {
    for (let i = 0, j = from + k * length; i < length; i++) bytes[i * width + k] = raw[j++];
  }
  return new TYPES[type](bytes.buffer);
}

function starts(counts) {
  const found = new Uint32Array(counts.length + 1);
  for (let i = 0; i < counts.length; i++) found[i + 1] = found[i] + counts[i];
  return found;
}

// Places of numbers in their order, what is unknown last; those that are the same by place. A number and its place
// make one number, which sorts many times faster than by a function.
function sortedBy(values, down) {
  const bits = new Uint32Array(values.buffer),
    keys = new Float64Array(values.length);
  for (let i = 0; i < keys.length; i++) {
    const upward = bits[i] & 0x80000000 ? ~bits[i] >>> 0 : (bits[i] | 0x80000000) >>> 0;
    const key = Number.isNaN(values[i]) ? 2 ** 32 : down ? 2 ** 32 - 1 - upward : upward;
    keys[i] = key * 2 ** 20 + i;
  }
  return Uint32Array.from(keys.sort(), (key) => key % 2 ** 20);
}

function base64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text),
    bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// ------------------------------------------------------------------------------------------------------- helpers

function element(make, name, attributes, children) {
  const node = make(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (key === "style") Object.assign(node.style, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

const h = (name, attributes, ...children) =>
  element((n) => document.createElement(n), name, attributes, children);
const svg = (name, attributes, ...children) =>
  element((n) => document.createElementNS("http://www.w3.org/2000/svg", n), name, attributes, children);

function color(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1),
    i = Math.min(Math.floor(at), RAMP.length - 2);
  return `rgb(${RAMP[i].map((low, k) => Math.round(low + (at - i) * (RAMP[i + 1][k] - low))).join(",")})`;
}
const onMap = (share) => color(0.28 + 0.72 * share);
const onChip = (share) => color(0.12 + 0.88 * share);
const ink = (share) => (share > 0.5 ? "#fff" : "#12222f");

function number(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  return size >= 0.1 || size === 0 ? value.toFixed(2) : value.toPrecision(2);
}
const percent = (share) =>
  !Number.isFinite(share)
    ? "–"
    : share === 0
      ? "0%"
      : share < 0.0001
        ? "<0.01%"
        : `${(100 * share).toFixed(share < 0.001 ? 3 : share < 0.01 ? 2 : share < 0.1 ? 1 : 0)}%`;
const count = (value) => value.toLocaleString("en-US");
const others = (n) => (n === 1 ? "1 other" : `${count(n)} others`);

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step)
    found.push(+v.toPrecision(12));
  return found;
}

// -------------------------------------------------------------------------------------------------------- state

class Explorer {
  constructor(root, source, core) {
    this.root = root;
    this.source = source;
    this.core = core;
    const { meta } = core;
    this.meta = meta;
    this.n = meta.width;
    this.firstGene = starts(core.n_top);
    this.lower = meta.symbols.map((symbol) => symbol.toLowerCase());
    this.labels = meta.labels.map((label) => label.toLowerCase());
    this.best = this.bestGroups();
    this.state = {
      query: "",
      group: -1,
      family: 0,
      low: 0,
      high: 1,
      sort: meta.groups.length ? "group" : "max",
      down: true,
    };
    this.chosen = -1;
    this.order = new Uint32Array(0);
    this.orders = new Map();
    this.build();
    this.filter();
  }

  auroc(feature, group) {
    const value = this.core.auroc[feature * this.meta.groups.length + group];
    return value === UNKNOWN ? NaN : value / (UNKNOWN - 1);
  }

  bestGroups() {
    const g = this.meta.groups.length,
      all = this.core.auroc,
      found = new Int16Array(this.n).fill(-1);
    for (let f = 0; f < this.n; f++) {
      let most = -1;
      for (let k = 0; k < g; k++) {
        const value = all[f * g + k];
        if (value !== UNKNOWN && value > most) {
          most = value;
          found[f] = k;
        }
      }
    }
    return found;
  }

  groupOf(feature) {
    return this.state.group >= 0 ? this.state.group : this.best[feature];
  }

  genesOf(feature) {
    const found = [];
    for (let i = this.firstGene[feature]; i < this.firstGene[feature + 1]; i++) {
      const mean = (this.core.gene_mean[i] / UNKNOWN) * this.core.largest_mean[feature];
      found.push({
        symbol: this.meta.symbols[this.core.gene[i]],
        mean,
        share: this.core.gene_share[i] / UNKNOWN,
        lift: mean / this.core.overall[feature],
      });
    }
    return found;
  }

  name(feature) {
    return this.meta.labels[feature] || "";
  }

  // ------------------------------------------------------------------------------------------------- filtering

  // Features that have all words in their number, top genes or label; null for no words.
  matches() {
    const words = this.state.query
      .toLowerCase()
      .split(/[\s,]+/)
      .filter(Boolean);
    if (!words.length) return null;
    const { n, firstGene, lower, labels } = this,
      { gene } = this.core;
    const whole = new Uint8Array(n).fill(1),
      one = new Uint8Array(n),
      genes = new Uint8Array(lower.length);
    for (const word of words) {
      one.fill(0);
      const digits = word.replace(/^#/, "");
      if (/^\d+$/.test(digits) && +digits < n) one[+digits] = 1;
      for (let i = 0; i < genes.length; i++) genes[i] = lower[i].startsWith(word) ? 1 : 0;
      for (let f = 0; f < n; f++) {
        for (let i = firstGene[f]; i < firstGene[f + 1]; i++) one[f] |= genes[gene[i]];
      }
      for (let f = 0; f < labels.length; f++) if (labels[f].includes(word)) one[f] = 1;
      for (let f = 0; f < n; f++) whole[f] &= one[f];
    }
    return whole;
  }

  filter() {
    const { state, n } = this,
      { density, family, auroc } = this.core,
      hit = this.matches();
    const [low, high] = this.densities(),
      { group } = state,
      groups = this.meta.groups.length;
    const found = new Uint32Array(n);
    let most = 0;
    const order = this.sorted();
    for (let i = 0; i < n; i++) {
      const f = order[i];
      if (hit && !hit[f]) continue;
      if (density[f] < low || density[f] > high) continue;
      if (state.family && family[f] !== state.family) continue;
      if (group >= 0) {
        const value = auroc[f * groups + group];
        if (value === UNKNOWN || value < ENRICHED * (UNKNOWN - 1)) continue;
      }
      found[most++] = f;
    }
    this.order = found.subarray(0, most);
    this.showCount();
    this.rows.scrollTop = 0;
    this.drawRows(true);
    if (this.chosen < 0 && most) this.choose(found[0]);
  }

  // All features in the order that is asked for; found once for each.
  sorted() {
    const { sort, down, group } = this.state,
      name = `${sort} ${down} ${sort === "group" ? group : ""}`;
    if (!this.orders.has(name)) this.orders.set(name, sortedBy(this.sortValues(sort), down));
    return this.orders.get(name);
  }

  sortValues(sort) {
    const { core, n } = this;
    const column = { density: "density", cells: "n_cells", max: "max_active", rank: "mean_rank" }[sort];
    if (column) return Float32Array.from(core[column]);
    const values = Float32Array.from({ length: n }, (_, f) => f);
    if (sort === "group") {
      for (let f = 0; f < n; f++) values[f] = this.groupOf(f) < 0 ? NaN : this.auroc(f, this.groupOf(f));
    } else if (sort === "label") {
      const { labels } = this,
        places = new Map([...new Set(labels)].sort().map((label, place) => [label, place]));
      for (let f = 0; f < n; f++) values[f] = labels[f] ? places.get(labels[f]) : NaN;
    }
    return values;
  }

  densities() {
    const { low, high } = this.state;
    return [low <= 0 ? 0 : this.densityAt(low), high >= 1 ? Infinity : this.densityAt(high)];
  }

  densityAt(share) {
    return 10 ** (this.leastLog + share * -this.leastLog);
  }

  // ---------------------------------------------------------------------------------------------- the left side

  build() {
    const { meta } = this;
    this.rows = h("div", { class: "mt-rows", role: "listbox", tabindex: "0", "aria-label": "Features" });
    this.spacer = h("div", { style: { position: "relative" } });
    this.rows.append(this.spacer);
    this.rows.addEventListener("scroll", () => this.drawRows());
    this.rows.addEventListener("keydown", (event) => this.key(event));
    this.shown = h("div", { class: "mt-count", "aria-live": "polite" });
    this.main = h("main", { class: "mt-main", "aria-live": "off" });
    const search = h("input", {
      class: "mt-search",
      type: "search",
      "aria-label": "Search",
      spellcheck: "false",
      autocomplete: "off",
      placeholder: meta.labels.length ? "Gene, label or number" : "Gene symbol or number",
      oninput: () => this.set({ query: search.value }),
    });
    this.search = search;
    const title = h("h1", {}, meta.title);
    title.title = meta.about;
    const side = h(
      "div",
      { class: "mt-side" },
      h("div", { class: "mt-head" }, title, search, h("div", { class: "mt-controls" }, this.controls())),
      this.shown,
      this.rows,
    );
    this.root.replaceChildren(h("div", { class: "mt-body" }, side, this.main));
    new ResizeObserver(() => this.drawRows()).observe(this.rows);
    let width = 0;
    new ResizeObserver(() => {
      if (Math.abs(this.main.clientWidth - width) > 4) {
        width = this.main.clientWidth;
        this.redraw();
      }
    }).observe(this.main);
  }

  controls() {
    const { meta, state } = this,
      made = [];
    const menu = (name, text, options, value, change) => {
      const select = h(
        "select",
        { "aria-label": text, onchange: () => change(select.value) },
        options.map(([key, label]) => h("option", { value: key }, label)),
      );
      select.value = value;
      this[name] = select;
      return select;
    };
    const labelled = (text, control) => made.push(h("span", { class: "mt-name" }, text), control);
    if (meta.groups.length) {
      labelled(
        "Cell type",
        menu(
          "groupMenu",
          "Cell type",
          [[-1, "any"], ...meta.groups.map((group, i) => [i, group])],
          -1,
          (value) => this.set({ group: +value, ...(+value >= 0 ? { sort: "group", down: true } : {}) }),
        ),
      );
      this.groupMenu.title = `Features with an AUROC of at least ${ENRICHED} for it, by ${meta.groupby}`;
    }
    if (meta.families.length) {
      const size = new Uint32Array(meta.families.length + 1);
      for (let f = 0; f < this.n; f++) size[this.core.family[f]]++;
      const order = [...meta.families.keys()].sort((a, b) => size[b + 1] - size[a + 1]).slice(0, 300);
      labelled(
        "Family",
        menu(
          "familyMenu",
          "Family",
          [[0, "any"], ...order.map((i) => [i + 1, `${meta.families[i]} (${size[i + 1]} features)`])],
          0,
          (value) => this.set({ family: +value }),
        ),
      );
    }
    labelled("Density", this.densityControl());
    const sorts = [
      ["group", "best cell type (AUROC)"],
      ["max", "largest activation"],
      ["density", "density"],
      ["cells", "cells"],
      ["rank", "mean rank of genes"],
      ["label", "label"],
      ["number", "number"],
    ].filter(([key]) => (key !== "group" || meta.groups.length) && (key !== "label" || meta.labels.length));
    const turn = h(
      "button",
      { type: "button", title: "Turn the order round", onclick: () => this.set({ down: !this.state.down }) },
      "↓",
    );
    this.turn = turn;
    labelled(
      "Sort by",
      h(
        "div",
        { class: "mt-sort" },
        menu("sortMenu", "Sort by", sorts, state.sort, (value) =>
          this.set({ sort: value, down: !["rank", "label", "number"].includes(value) }),
        ),
        turn,
      ),
    );
    return made;
  }

  densityControl() {
    let least = 1;
    for (let f = 0; f < this.n; f++)
      if (this.core.density[f] > 0) least = Math.min(least, this.core.density[f]);
    this.leastLog = Math.min(Math.log10(least), -1);
    const bins = new Uint32Array(40);
    for (let f = 0; f < this.n; f++) {
      const d = this.core.density[f];
      if (d > 0)
        bins[Math.min(Math.floor((1 - Math.log10(d) / this.leastLog) * bins.length), bins.length - 1)]++;
    }
    const most = Math.max(...bins, 1);
    this.bars = [...bins].map((value, i) => {
      const tall = value ? Math.max((24 * value) / most, 1) : 0;
      return svg("rect", { x: i * 5, y: 24 - tall, width: 4.4, height: tall, fill: "#9fb4c4" });
    });
    const range = (name, text, value) => {
      const input = h("input", {
        type: "range",
        min: 0,
        max: 1,
        step: 0.0125,
        "aria-label": text,
        oninput: () => {
          const low = Math.min(+this.lowRange.value, +this.highRange.value);
          this.set({ low, high: Math.max(+this.lowRange.value, +this.highRange.value) });
        },
      });
      input.value = value;
      this[name] = input;
      return input;
    };
    this.densityText = h("output", {});
    return h(
      "div",
      { class: "mt-density", title: "Share of the genes read at which a feature is active; log scale" },
      svg("svg", { viewBox: "0 0 200 24", preserveAspectRatio: "none", "aria-hidden": "true" }, this.bars),
      range("lowRange", "Smallest density", 0),
      range("highRange", "Largest density", 1),
      this.densityText,
    );
  }

  set(change) {
    Object.assign(this.state, change);
    const { state } = this;
    if (this.groupMenu) this.groupMenu.value = state.group;
    if (this.familyMenu) this.familyMenu.value = state.family;
    this.sortMenu.value = state.sort;
    this.lowRange.value = state.low;
    this.highRange.value = state.high;
    if (this.search.value !== state.query) this.search.value = state.query;
    this.filter();
  }

  showCount() {
    const { state } = this,
      [low, high] = this.densities();
    this.turn.textContent = state.down ? "↓" : "↑";
    this.bars.forEach((bar, i) => {
      const at = (i + 0.5) / this.bars.length;
      bar.setAttribute("fill", at >= state.low && at <= state.high ? "#5b93b8" : "#d6dde3");
    });
    this.densityText.textContent =
      state.low <= 0 && state.high >= 1
        ? "any share of the genes read"
        : `${low ? percent(low) : "0%"} to ${Number.isFinite(high) ? percent(high) : "100%"} of the genes read`;
    const filtered = state.query || state.group >= 0 || state.family || state.low > 0 || state.high < 1;
    this.shown.replaceChildren(
      h(
        "span",
        {},
        filtered ? `${count(this.order.length)} of ${count(this.n)} features` : `${count(this.n)} features`,
      ),
      ...(filtered
        ? [
            h(
              "button",
              {
                type: "button",
                onclick: () => this.set({ query: "", group: -1, family: 0, low: 0, high: 1 }),
              },
              "Show all",
            ),
          ]
        : []),
    );
    this.spacer.style.height = `${this.order.length * ROW}px`;
  }

  // Only rows that can be seen are in the document.
  drawRows(anew = false) {
    const from = Math.max(Math.floor(this.rows.scrollTop / ROW) - 4, 0);
    const to = Math.min(from + Math.ceil((this.rows.clientHeight || 600) / ROW) + 8, this.order.length);
    if (!anew && this.window?.[0] === from && this.window?.[1] === to) return;
    this.window = [from, to];
    const made = [];
    for (let i = from; i < to; i++) made.push(this.row(this.order[i], i));
    if (!this.order.length)
      made.push(
        h("div", { class: "mt-none" }, "No feature is like this. Search for another gene, or show all."),
      );
    this.spacer.replaceChildren(...made);
  }

  // What the list is sorted by.
  valueOf(f, group) {
    const { core } = this;
    if (this.state.sort === "max") return number(core.max_active[f]);
    if (this.state.sort === "cells") return `${count(core.n_cells[f])} cells`;
    if (this.state.sort === "rank") return `rank ${number(core.mean_rank[f])}`;
    if (this.state.sort === "group" && group >= 0 && core.n_cells[f]) {
      return `AUROC ${this.auroc(f, group).toFixed(2)}`;
    }
    return percent(core.density[f]);
  }

  row(f, i) {
    const { core } = this,
      genes = [];
    for (let j = this.firstGene[f]; j < Math.min(this.firstGene[f] + 5, this.firstGene[f + 1]); j++) {
      genes.push(this.meta.symbols[this.core.gene[j]]);
    }
    const label = this.name(f),
      g = this.groupOf(f),
      dead = !this.core.n_cells[f];
    const text = genes.join(", ") || (dead ? "never active here" : "no top genes");
    return h(
      "div",
      {
        class: "mt-row",
        role: "option",
        "aria-selected": f === this.chosen,
        "data-feature": f,
        style: { top: `${i * ROW}px`, height: `${ROW}px` },
        onclick: () => this.choose(f),
      },
      h("span", { class: "mt-number" }, String(f)),
      h(
        "div",
        {},
        h("span", { class: "mt-what" }, label || text),
        h("span", { class: "mt-value" }, this.valueOf(f, g)),
      ),
      h(
        "div",
        {
          class: "mt-sub",
          title: `Active at ${percent(core.density[f])} of the genes read, in ${count(core.n_cells[f])} cells`,
        },
        h(
          "span",
          {},
          label ? text : dead ? "" : `${percent(this.core.density[f])}, ${count(this.core.n_cells[f])} cells`,
        ),
        h("span", {}, g >= 0 && !dead ? this.meta.groups[g] : ""),
      ),
    );
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (!step || !this.order.length) return;
    event.preventDefault();
    event.stopPropagation();
    const at = this.order.indexOf(this.chosen);
    const next = Math.min(Math.max(at + step, 0), this.order.length - 1);
    this.choose(this.order[next]);
    const top = next * ROW;
    if (top < this.rows.scrollTop) this.rows.scrollTop = top;
    else if (top + ROW > this.rows.scrollTop + this.rows.clientHeight)
      this.rows.scrollTop = top + ROW - this.rows.clientHeight;
  }

  // ------------------------------------------------------------------------------------------------- one feature

  choose(f) {
    if (!(f >= 0 && f < this.n)) return;
    const other = f !== this.chosen;
    this.chosen = f;
    this.drawRows(true);
    if (other) {
      this.source.chosen?.(f);
      this.main.scrollTop = 0;
    }
    this.redraw();
  }

  redraw() {
    const f = this.chosen;
    if (f < 0) return;
    const { core, meta } = this,
      label = this.name(f);
    const tile = (value, text) => h("div", { class: "mt-tile" }, h("b", {}, value), h("span", {}, text));
    this.slots = Object.fromEntries(
      ["groups", "map", "histogram", "cells"].map((name) => [name, h("section", { class: "mt-panel" })]),
    );
    this.slots.cells.classList.add("mt-wide");
    const genes = this.genePanel(f);
    const family = this.familyPanel(f);
    this.main.replaceChildren(
      h(
        "div",
        { class: "mt-title" },
        h("h2", {}, label || `Feature ${f}`),
        label ? h("span", {}, `feature ${f}`) : null,
      ),
      h(
        "div",
        { class: "mt-tiles" },
        tile(percent(core.density[f]), "of the genes read"),
        tile(`${count(core.n_cells[f])} of ${count(meta.n_cells)}`, "cells"),
        tile(count(core.n_genes[f]), "different genes"),
        tile(
          number(core.max_active[f]),
          meta.pool === "count" ? "most genes of a cell" : "largest activation",
        ),
        tile(number(core.mean_rank[f]), "mean rank of these genes"),
      ),
      h(
        "div",
        { class: "mt-panels" },
        genes,
        meta.groups.length ? this.slots.groups : null,
        this.slots.map,
        this.slots.histogram,
        family,
        this.slots.cells,
      ),
      this.help(),
    );
    this.fill(f);
  }

  async fill(f) {
    try {
      const cells = await this.cellsBlock();
      if (f !== this.chosen) return;
      if (this.meta.groups.length) this.groupPanel(f, cells);
      this.mapPanel(f, cells);
      this.histogramPanel(f, cells);
      this.cellPanel(f, cells, undefined);
      const found = await this.source.genes(f, cells);
      if (f === this.chosen) this.cellPanel(f, cells, found);
    } catch (error) {
      if (f === this.chosen)
        this.slots.cells.replaceChildren(h("p", { class: "mt-note" }, String(error.message ?? error)));
    }
  }

  cellsBlock() {
    return (this.opened ??= this.source.cells().then((cells) => {
      cells.first = starts(cells.count);
      return cells;
    }));
  }

  genePanel(f) {
    const genes = this.genesOf(f),
      most = Math.max(...genes.map((gene) => gene.mean), 1e-12);
    const heads = [
      ["Gene", "", "27%"],
      ["mean activation", "mt-bar", "30%"],
      ["", "", "12%"],
      ["active", "", "13%", "Share of the gene's places at which the feature is active"],
      ["× all genes", "", "18%", "Mean activation over that of all genes"],
    ];
    return h(
      "section",
      { class: "mt-panel" },
      h("h3", {}, "Top genes"),
      genes.length
        ? h(
            "table",
            {},
            h(
              "tr",
              {},
              heads.map(([text, kind, width, title]) =>
                h("th", { class: kind, title, style: { width } }, text),
              ),
            ),
            genes.map((gene) =>
              h(
                "tr",
                {},
                h(
                  "td",
                  {},
                  h(
                    "button",
                    {
                      class: "mt-gene",
                      type: "button",
                      title: `Features with ${gene.symbol} among their top genes`,
                      onclick: () => this.set({ query: gene.symbol }),
                    },
                    gene.symbol,
                  ),
                ),
                h(
                  "td",
                  { class: "mt-bar" },
                  h(
                    "div",
                    { class: "mt-bars" },
                    h("i", { style: { left: 0, width: `${(100 * gene.mean) / most}%` } }),
                  ),
                ),
                h("td", {}, number(gene.mean)),
                h("td", {}, percent(gene.share)),
                h("td", {}, number(gene.lift)),
              ),
            ),
          )
        : h("p", { class: "mt-note" }, "None of the genes at which it is active was read often enough."),
    );
  }

  groupPanel(f, cells) {
    const { meta } = this,
      g = meta.groups.length;
    const rows = meta.groups
      .map((name, k) => ({
        name,
        auroc: this.auroc(f, k),
        mean: (cells.group_mean[f * g + k] / (UNKNOWN - 1)) * cells.highest_mean[f],
      }))
      .filter((row) => Number.isFinite(row.auroc))
      .sort((a, b) => b.auroc - a.auroc);
    const shown = rows.slice(0, 10);
    this.slots.groups.replaceChildren(
      h("h3", {}, "Cell types", h("small", {}, meta.groupby)),
      h(
        "table",
        {},
        h(
          "tr",
          {},
          [
            ["Cell type", "", "42%"],
            ["AUROC against all other cells", "mt-bar", "36%"],
            ["", "", "9%"],
            ["mean", "", "13%", "Mean activation of the cells"],
          ].map(([text, kind, width, title]) => h("th", { class: kind, title, style: { width } }, text)),
        ),
        shown.map((row) => {
          const low = Math.min(row.auroc, 0.5),
            long = Math.abs(row.auroc - 0.5);
          return h(
            "tr",
            {},
            h("td", { title: row.name }, row.name),
            h(
              "td",
              { class: "mt-bar" },
              h(
                "div",
                { class: "mt-bars" },
                h("i", {
                  style: {
                    left: `${100 * low}%`,
                    width: `${100 * long}%`,
                    background: row.auroc < 0.5 ? "#b4bec7" : "",
                  },
                }),
                h("u", {}),
              ),
            ),
            h("td", {}, row.auroc.toFixed(2)),
            h("td", {}, number(row.mean)),
          );
        }),
        h(
          "tr",
          {},
          h("td", {}),
          h(
            "td",
            { class: "mt-bar" },
            h(
              "div",
              { class: "mt-axis" },
              [0, 0.5, 1].map((v) => h("span", { style: { left: `${100 * v}%` } }, String(v))),
            ),
          ),
          h("td", {}),
          h("td", {}),
        ),
      ),
      rows.length > shown.length
        ? h("p", { class: "mt-note" }, `and ${rows.length - shown.length} more, with a smaller AUROC`)
        : "",
    );
  }

  // Activations of the cells on the map, 0 where there are none.
  values(f, cells) {
    const found = new Float32Array(cells.meta.n_shown);
    for (let i = cells.first[f], at = 0; i < cells.first[f + 1]; i++) {
      at += cells.step[i];
      found[at] = cells.level[i] / cells.meta.levels;
    }
    return found;
  }

  mapPanel(f, cells) {
    const slot = this.slots.map,
      names = Object.keys(cells.meta.maps),
      { meta } = this;
    if (!names.length) {
      slot.replaceChildren(
        h("h3", {}, "Map"),
        h("p", { class: "mt-note" }, "The cells have no map: compute one (sc.tl.umap) and open this again."),
      );
      return;
    }
    this.map ??= { name: names[0], by: "activation" };
    const redo = () => this.mapPanel(this.chosen, cells);
    const menu = (options, value, change, text) => {
      const select = h(
        "select",
        {
          "aria-label": text,
          onchange: () => {
            change(select.value);
            redo();
          },
        },
        options.map(([key, label]) => h("option", { value: key }, label)),
      );
      select.value = value;
      return select;
    };
    const name = this.map.name,
      [across, up] = cells.meta.maps[name],
      spatial = name === "spatial";
    const pretty = { umap: "UMAP", tsne: "t-SNE", pca: "PCA", spatial: "tissue" }[name] ?? name;
    const canvas = h("canvas", {}),
      tip = h("div", { class: "mt-tip", hidden: "" });
    const plot = h("div", { class: "mt-plot" }, canvas, tip);
    slot.replaceChildren(
      h(
        "h3",
        {},
        h(
          "span",
          {},
          names.length > 1
            ? menu(
                names.map((key) => [key, key === "spatial" ? "Tissue" : `Map: ${key}`]),
                name,
                (value) => {
                  this.map.name = value;
                },
                "Map",
              )
            : spatial
              ? "Tissue"
              : pretty,
        ),
        meta.groups.length
          ? menu(
              [
                ["activation", "by activation"],
                ["group", `by ${meta.groupby}`],
              ],
              this.map.by,
              (value) => {
                this.map.by = value;
              },
              "Colour",
            )
          : null,
      ),
      plot,
    );
    const width = slot.clientWidth || 380,
      most = Math.round(Math.min(Math.max(width * 0.74, 220), 340));
    const dpr = window.devicePixelRatio || 1,
      pad = 10,
      left = spatial ? pad : 20,
      below = spatial ? pad : 20;
    const room = [width - left - pad, most - below - pad];
    const even = Math.min(room[0] / Math.max(across, 1e-9), room[1] / Math.max(up, 1e-9));
    // Distances in a tissue are what they are; those of an embedding mean little.
    const stretch = spatial ? [even, even] : [room[0] / Math.max(across, 1e-9), room[1] / Math.max(up, 1e-9)];
    const height = spatial ? Math.round(up * even) + below + pad : most;
    canvas.width = width * dpr;
    canvas.height = height * dpr;
    canvas.style.height = `${height}px`;
    const draw = canvas.getContext("2d");
    draw.scale(dpr, dpr);
    const x = cells[`${name}.x`],
      y = cells[`${name}.y`],
      n = cells.meta.n_shown,
      values = this.values(f, cells);
    const px = new Float32Array(n),
      py = new Float32Array(n);
    // Rows of an image go down, axes of an embedding go up.
    for (let i = 0; i < n; i++) {
      const v = (y[i] / 65534) * stretch[1];
      px[i] = x[i] === 65535 ? NaN : left + (x[i] / 65534) * stretch[0];
      py[i] = spatial ? pad + v : height - below - v;
    }
    const order = Uint32Array.from({ length: n }, (_, i) => i);
    const byGroup = this.map.by === "group";
    if (!byGroup) order.sort((a, b) => values[a] - values[b]);
    const size = Math.min(Math.max(0.55 * Math.sqrt((room[0] * height) / n) * 0.34, 1.1), 3.6);
    for (const i of order) {
      draw.fillStyle = byGroup
        ? cells.group[i]
          ? meta.colors[cells.group[i] - 1]
          : OFF
        : values[i]
          ? onMap(values[i])
          : OFF;
      draw.beginPath();
      draw.arc(px[i], py[i], size, 0, 7);
      draw.fill();
    }
    if (!spatial) {
      draw.strokeStyle = "#8a949e";
      draw.fillStyle = "#5f6b76";
      draw.font = "11px system-ui, sans-serif";
      draw.beginPath();
      draw.moveTo(left - 8, height - below - 44);
      draw.lineTo(left - 8, height - below + 6);
      draw.lineTo(left + 42, height - below + 6);
      draw.stroke();
      draw.fillText(`${pretty} 1`, left - 6, height - 3);
      draw.save();
      draw.translate(left - 12, height - below + 4);
      draw.rotate(-Math.PI / 2);
      draw.fillText(`${pretty} 2`, 0, 0);
      draw.restore();
    }
    canvas.addEventListener("mousemove", (event) => {
      const box = canvas.getBoundingClientRect(),
        mx = event.clientX - box.left,
        my = event.clientY - box.top;
      let near = -1,
        least = 144;
      for (let i = 0; i < n; i++) {
        const d = (px[i] - mx) ** 2 + (py[i] - my) ** 2;
        if (d < least) {
          least = d;
          near = i;
        }
      }
      tip.hidden = near < 0;
      if (near < 0) return;
      const group = cells.group[near] ? `, ${meta.groups[cells.group[near] - 1]}` : "";
      const value = values[near] ? number(values[near] * cells.scale[f]) : "not active";
      tip.textContent = `${cells.meta.names[near]}${group}: ${value}`;
      tip.style.top = `${Math.max(py[near] - 30, 0)}px`;
      tip.style.left = `${Math.max(Math.min(px[near] + 8, width - tip.offsetWidth), 0)}px`;
    });
    canvas.addEventListener("mouseleave", () => {
      tip.hidden = true;
    });
    const ramp = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(onMap).join(",")})`;
    slot.append(
      h(
        "div",
        { class: "mt-scale" },
        byGroup
          ? meta.groups.map((group, k) =>
              h("span", {}, h("i", { style: { background: meta.colors[k] } }), group),
            )
          : [
              h("span", {}, h("i", { style: { background: OFF } }), "not active"),
              "0",
              h("span", { class: "mt-ramp", style: { background: ramp } }),
              `${number(cells.scale[f])} activation`,
            ],
      ),
    );
    if (n < meta.n_cells)
      slot.append(
        h("p", { class: "mt-note" }, `${count(n)} of ${count(meta.n_cells)} cells, drawn at random.`),
      );
  }

  histogramPanel(f, cells) {
    const slot = this.slots.histogram,
      values = this.values(f, cells).filter((v) => v > 0),
      n = cells.meta.n_shown;
    const share = values.length / n;
    const head = h(
      "h3",
      {},
      "Activation of cells",
      h("small", {}, `${count(n - values.length)} of ${count(n)} not active (${percent(1 - share)})`),
    );
    if (!values.length) {
      slot.replaceChildren(head, h("p", { class: "mt-note" }, "It is active in none of them."));
      return;
    }
    const bins = new Uint32Array(cells.meta.levels / 2),
      most = cells.scale[f];
    for (const v of values) bins[Math.min(Math.ceil(v * bins.length) - 1, bins.length - 1)]++;
    const width = slot.clientWidth || 380,
      height = 190,
      left = 44,
      below = 36,
      top = 6;
    const marks = ticks(0, Math.max(...bins, 2) * 1.2, 4).filter(Number.isInteger);
    const highest = Math.max(...bins, ...marks),
      tall = height - below - top,
      wide = width - left - 8;
    const x0 = (i) => (i * most) / bins.length,
      x = (v) => left + (v / most) * wide,
      y = (v) => top + tall - (v / highest) * tall;
    const label =
      this.meta.pool === "count" ? "genes at which it is active" : "activation of a cell, where it is active";
    slot.replaceChildren(
      head,
      svg(
        "svg",
        { width, height, role: "img", "aria-label": `Histogram of ${label}` },
        marks.map((v) => [
          svg("line", { x1: left, x2: width - 8, y1: y(v), y2: y(v), stroke: v ? "#eef1f4" : "#8a949e" }),
          svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, count(v)),
        ]),
        [...bins].map((value, i) => {
          const bar = svg("rect", {
            x: left + (i * wide) / bins.length + 0.5,
            y: y(value),
            width: wide / bins.length - 1,
            height: top + tall - y(value),
            fill: "#0072b2",
          });
          bar.append(svg("title", {}, `${number(x0(i))} to ${number(x0(i + 1))}: ${count(value)} cells`));
          return bar;
        }),
        ticks(0, most, 6).map((v) =>
          svg("text", { x: x(v), y: height - below + 15, "text-anchor": "middle" }, String(v)),
        ),
        svg("text", { x: left + wide / 2, y: height - 4, "text-anchor": "middle" }, label),
        svg(
          "text",
          { x: -(top + tall / 2), y: 11, "text-anchor": "middle", transform: "rotate(-90)" },
          "cells",
        ),
      ),
    );
  }

  familyPanel(f) {
    const own = this.core.family[f];
    if (!own) return null;
    const members = [];
    for (let other = 0; other < this.n; other++)
      if (this.core.family[other] === own && other !== f) members.push(other);
    members.sort((a, b) => this.core.max_active[b] - this.core.max_active[a]);
    const name = this.meta.families[own - 1];
    return h(
      "section",
      { class: "mt-panel mt-wide" },
      h(
        "h3",
        {},
        h("span", {}, `Family ${name}`),
        members.length
          ? h(
              "button",
              {
                class: "mt-link",
                type: "button",
                onclick: () => this.set({ query: "", group: -1, low: 0, high: 1, family: own }),
              },
              `list all ${count(members.length + 1)}`,
            )
          : null,
      ),
      members.length
        ? h(
            "div",
            { class: "mt-family" },
            members.slice(0, 16).map((other) => {
              const genes = this.genesOf(other)
                .slice(0, 3)
                .map((gene) => gene.symbol)
                .join(", ");
              return h(
                "button",
                { type: "button", onclick: () => this.choose(other) },
                `${other}  ${this.name(other) || genes}`,
              );
            }),
          )
        : h("p", { class: "mt-note" }, "It is the only one of its family."),
    );
  }

  cellPanel(f, cells, genes) {
    const { meta } = this,
      n = cells.meta.n_top,
      shown = [];
    for (let i = 0; i < n; i++) {
      const at = cells.top[f * n + i];
      if (at >= cells.meta.names.length) break;
      const name = cells.meta.names[at],
        group = cells.group[at] ? meta.groups[cells.group[at] - 1] : "";
      const value = number(cells.top_value[f * n + i]);
      shown.push(
        h(
          "div",
          { class: "mt-cell" },
          h(
            "p",
            {},
            h("b", {}, name),
            h("span", {}, group),
            h("span", {}, meta.pool === "count" ? `${value} genes` : `activation ${value}`),
          ),
          genes?.[i] ? this.strip(genes[i]) : null,
        ),
      );
    }
    const slot = this.slots.cells,
      why = genes === undefined ? "Reading their genes …" : genes === null ? this.source.why : "";
    const fewer =
      genes && genes.filter(Boolean).length < shown.length
        ? `Genes are shown of the first ${genes.filter(Boolean).length}, to keep this page small.`
        : "";
    slot.replaceChildren(
      h(
        "h3",
        {},
        "Top cells",
        genes?.length ? h("small", {}, "genes in rank order, coloured by the activation at each") : null,
      ),
      why || fewer ? h("p", { class: "mt-note", style: { marginBottom: "6px" } }, why || fewer) : "",
      shown.length ? h("div", {}, shown) : h("p", { class: "mt-note" }, "It is active in no cell."),
    );
  }

  // A cell: all its genes as one band, then their names; long runs of others are left out below the first ones.
  strip({ length, first, marks, most }) {
    const band = svg(
      "svg",
      {
        class: "mt-strip",
        viewBox: `0 0 ${length} 10`,
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": `Where among ${length} ranks the feature is active`,
      },
      marks.map(({ rank, value }) =>
        svg("rect", {
          x: rank - 1,
          y: 0,
          width: Math.max(1, length / 300),
          height: 10,
          fill: onMap(value / most),
        }),
      ),
    );
    band.append(svg("title", {}, `ranks 1 to ${count(length)}, the highest ranked gene left`));
    const by = new Map(marks.map((mark) => [mark.rank, mark])),
      chips = [];
    const chip = (rank, symbol, mark) =>
      h(
        "span",
        mark
          ? {
              class: "mt-on",
              title: `rank ${rank}, activation ${number(mark.value)}`,
              style: { background: onChip(mark.value / most), color: ink(mark.value / most) },
            }
          : { title: `rank ${rank}` },
        mark ? h("sup", {}, String(rank)) : null,
        symbol,
      );
    first.forEach((symbol, i) => chips.push(chip(i + 1, symbol, by.get(i + 1))));
    let last = first.length;
    for (const mark of marks.filter(({ rank }) => rank > first.length)) {
      if (mark.rank > last + 1) chips.push(h("span", { class: "mt-gap" }, others(mark.rank - last - 1)));
      chips.push(chip(mark.rank, mark.symbol, mark));
      last = mark.rank;
    }
    if (length > last) chips.push(h("span", { class: "mt-gap" }, others(length - last)));
    return [band, h("div", { class: "mt-chips" }, chips)];
  }

  help() {
    const terms = [
      [
        "Activation",
        "how much of the feature there is in the model's state at a gene, in the unit of the states; most are 0",
      ],
      [
        "Activation of a cell",
        {
          max: "the largest of its genes",
          mean: "the mean of the five largest of its genes",
          count: "at how many of its genes the feature is active",
        }[this.meta.pool] ?? this.meta.pool,
      ],
      ["Density", "share of all genes read, over all cells, at which the feature is active"],
      [
        "Top genes",
        "those with the largest mean activation wherever they were read; × all genes: over the mean of all genes",
      ],
      [
        "AUROC",
        "how well the activation tells cells of a type from all others: 1 always, 0.5 not at all. It is of cells, " +
          "not of donors: it says what a feature looks like, and is no test",
      ],
      ["Rank", "place of a gene in its cell, 1 the highest expressed beside its median over many cells"],
    ];
    return h(
      "details",
      this.helping ? { open: "" } : {},
      h(
        "summary",
        {
          onclick: () => {
            this.helping = !this.helping;
          },
        },
        "What the numbers mean",
      ),
      h(
        "dl",
        {},
        terms.map(([term, text]) => [h("dt", {}, term), h("dd", {}, text)]),
      ),
      h("p", { class: "mt-note" }, this.meta.about),
    );
  }
}

// ------------------------------------------------------------------------------------------------------ sources

// Genes of the top cells, of a block.
function unpackGenes(block, f, cells) {
  const { meta } = block,
    kept = meta.n_kept,
    n = cells.meta.n_top;
  if (!block.starts) {
    block.starts = starts(block.count);
    block.firsts = starts(block.n_first);
    block.places = new Map(meta.cells.map((name, i) => [name, i]));
  }
  const found = [];
  for (let i = 0; i < n; i++) {
    const at = cells.top[f * n + i];
    if (at >= cells.meta.names.length) break;
    const row = block.places.get(cells.meta.names[at]);
    if (i >= kept || row === undefined) {
      found.push(null);
      continue;
    }
    const first = [...block.first.subarray(block.firsts[row], block.firsts[row + 1])].map(
      (g) => meta.symbols[g],
    );
    const marks = [];
    for (let j = block.starts[f * kept + i]; j < block.starts[f * kept + i + 1]; j++) {
      const rank = block.rank[j];
      marks.push({
        rank,
        value: (block.value[j] / meta.levels) * block.scale[f],
        symbol: rank <= first.length ? first[rank - 1] : meta.symbols[block.gene[j]],
      });
    }
    found.push({ length: block.length[row], first, marks, most: block.scale[f] || 1 });
  }
  return found;
}

async function mount(root, source) {
  root.classList.add("mt-features");
  try {
    const explorer = new Explorer(root, source, await source.core());
    root.explorer = explorer;
    return explorer;
  } catch (error) {
    root.replaceChildren(h("p", { class: "mt-problem" }, String(error.message ?? error)));
    return null;
  }
}

// A page: blocks lie in it as text.
async function page(root) {
  const text = (name) => document.getElementById(`mt-${name}`)?.textContent.trim() ?? "";
  const open = (name) => unpack(base64(text(name)));
  let genes = null;
  const source = {
    core: () => open("core"),
    cells: () => open("cells"),
    why: "This page was written without a model, which would read their genes.",
    genes: async (f, cells) =>
      text("genes") ? unpackGenes(await (genes ??= open("genes")), f, cells) : null,
    chosen: (f) => {
      try {
        history.replaceState(null, "", `#feature=${f}`);
      } catch {
        // A page inside another one has no address of its own.
      }
    },
  };
  const asked = /^#feature=(\d+)$/.exec(location.hash);
  const explorer = await mount(root, source);
  if (explorer && asked) explorer.choose(+asked[1]);
  window.addEventListener("hashchange", () => {
    const now = /^#feature=(\d+)$/.exec(location.hash);
    if (explorer && now) explorer.choose(+now[1]);
  });
  // Milliseconds from the beginning until the list is drawn.
  requestAnimationFrame(() => {
    document.documentElement.dataset.ready = explorer ? Math.round(performance.now()) : "no";
  });
}

// JupyterLab: blocks come from Python, which also reads the genes of the top cells when they are looked at.
async function render({ model, el }) {
  const root = document.createElement("div");
  root.style.height = `${model.get("height")}px`;
  root.style.border = "1px solid #e1e6eb";
  el.append(root);
  const bytes = (name) => {
    const view = model.get(name);
    return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  };
  const waiting = new Map(),
    known = new Map();
  model.on("msg:custom", (message) => {
    if (message?.feature === undefined) return;
    const done = waiting.get(message.feature);
    waiting.delete(message.feature);
    if (!done) return;
    if (message.error) done.reject(new Error(message.error));
    else done.resolve(message.cells);
  });
  const source = {
    core: () => unpack(bytes("core")),
    cells: () => unpack(bytes("cells")),
    why: "Give model= and sae= to see their genes.",
    genes: (f) => {
      if (!model.get("reads_genes")) return Promise.resolve(null);
      if (!known.has(f)) {
        known.set(
          f,
          new Promise((resolve, reject) => {
            waiting.set(f, { resolve, reject });
            model.send({ feature: f });
          }),
        );
        known.get(f).catch(() => known.delete(f));
      }
      return known.get(f);
    },
    chosen: (f) => {
      model.set("feature", f);
      model.save_changes();
    },
  };
  const asked = model.get("feature");
  const explorer = await mount(root, source);
  if (explorer && asked >= 0) explorer.choose(asked);
  model.on("change:feature", () => {
    if (explorer && model.get("feature") !== explorer.chosen) explorer.choose(model.get("feature"));
  });
}

export default { render };
export { page };
