(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const places = [...document.querySelectorAll(".plot")];
  const VARIANTS = ["blue", "orange", "green", "pink", "sky", "red", "yellow", "grey"];
  const RIGHT = 44;
  const sync = uPlot.sync("all");
  let plots = [];
  let zoom = null;
  let dragged = null;  // the plot in which a drag began
  let printing = false;

  // -- time: of the machine that made the report, wherever it is read ---------------------------

  function offset(seconds) {
    let found = data.offsets[0][1];
    for (const [from, east] of data.offsets) if (seconds >= from) found = east;
    return found;
  }
  // A date whose local fields say what a clock over there said.
  function there(seconds) {
    const here = new Date(seconds * 1e3);
    return new Date((seconds + offset(seconds) + here.getTimezoneOffset() * 60) * 1e3);
  }
  const long = uPlot.fmtDate("{YYYY}-{MM}-{DD} {HH}:{mm}");
  const axisDates = [
    [86400, "{MM}-{DD}", null, null, null, null, null, null, 1],
    [60, "{HH}:{mm}", "\n{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
    [1, "{HH}:{mm}:{ss}", "\n{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
  ];

  function middles([first, step, count]) {
    return Array.from({ length: count }, (_, i) => first + (i + 0.5) * step);
  }
  const fine = middles(data.fine);
  const coarse = middles(data.coarse);

  // -- colours ----------------------------------------------------------------------------------

  const LIGHT = {
    ink: "#1b1f23", dim: "#5d666f", grid: "#eceef0", down: "#c9ced3", gone: "#f0b9a0", paper: "#fff",
    blue: "#0072b2", sky: "#56b4e9", green: "#009e73", orange: "#e69f00", red: "#d55e00",
    pink: "#cc79a7", yellow: "#f0e442", grey: "#7f8a94",
  };
  function colours() {
    if (printing) return LIGHT;
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(
      Object.keys(LIGHT).map((name) => [name, style.getPropertyValue("--" + name).trim()]),
    );
  }

  // -- what every plot has ----------------------------------------------------------------------

  // Stripes where nobody watched, a tint where Triton was gone, lines where something happened.
  function backdrop(u, ink, numbers) {
    const { ctx, bbox } = u;
    const [first, step] = data.fine;
    const x = (seconds) => u.valToPos(seconds, "x", true);
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    const stretches = (steps, paint) => {
      for (let i = 0; i < steps.length; ) {
        let j = i;
        while (j + 1 < steps.length && steps[j + 1] === steps[j] + 1) j += 1;
        const from = x(first + steps[i] * step);
        paint(from, Math.max(x(first + (steps[j] + 1) * step) - from, 1));
        i = j + 1;
      }
    };
    ctx.fillStyle = ink.gone;
    stretches(data.gone, (from, width) => ctx.fillRect(from, bbox.top, width, bbox.height));
    ctx.strokeStyle = ink.down;
    ctx.lineWidth = devicePixelRatio;
    stretches(data.down, (from, width) => {
      ctx.save();
      ctx.beginPath();
      ctx.rect(from, bbox.top, width, bbox.height);
      ctx.clip();
      ctx.beginPath();
      for (let at = from - bbox.height; at < from + width; at += 7 * devicePixelRatio) {
        ctx.moveTo(at, bbox.top + bbox.height);
        ctx.lineTo(at + bbox.height, bbox.top);
      }
      ctx.stroke();
      ctx.restore();
    });
    ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.strokeStyle = ink.dim;
    ctx.beginPath();
    for (const [seconds] of data.marks) {
      ctx.moveTo(x(seconds), bbox.top);
      ctx.lineTo(x(seconds), bbox.top + bbox.height);
    }
    ctx.stroke();
    if (numbers) {
      ctx.fillStyle = ink.dim;
      ctx.font = 10 * devicePixelRatio + "px sans-serif";
      ctx.textBaseline = "top";
      let free = -Infinity;
      for (const [seconds, number] of data.marks) {
        const at = x(seconds) + 2 * devicePixelRatio;
        if (number === null || at < free) continue;
        ctx.fillText(String(number), at, bbox.top + devicePixelRatio);
        free = at + ctx.measureText(String(number) + " ").width;
      }
    }
    ctx.restore();
  }

  const digits = (value) =>
    value >= 99.5 ? value.toFixed(0) : value >= 9.95 ? value.toFixed(1) : value.toFixed(2);
  const shown = (unit, scale) => (u, value) =>
    value == null ? (u.cursor.idx == null ? "" : "-") : digits(value * (scale || 1)) + unit;

  // What stands alone between gaps has no line: a dot.
  function alone(u, series) {
    const column = u.data[series];
    const found = [];
    for (let i = 0; i < column.length; i += 1)
      if (column[i] != null && column[i - 1] == null && column[i + 1] == null) found.push(i);
    return found.length ? found : null;
  }

  function line(label, colour, unit, more) {
    return Object.assign(
      { label, stroke: colour, width: innerWidth < 600 ? 0.8 : 1.25, points: { show: false, size: 4, filter: alone, fill: colour }, value: shown(unit) },
      more,
    );
  }
  const steps = uPlot.paths.stepped({ align: 1 });
  // A value that is told on hover and not drawn.
  const hidden = { paths: () => null, width: 0, points: { show: false } };

  function axis(ink, more) {
    return Object.assign(
      {
        stroke: ink.dim,
        font: "11px system-ui, sans-serif",
        grid: { stroke: ink.grid, width: 1 },
        ticks: { show: false },
        size: 46,
        gap: 4,
      },
      more,
    );
  }

  function options(ink, width, height, series, scales, axes, more) {
    const at = { label: "time", value: (u, seconds) => (seconds == null ? "" : long(there(seconds))) };
    return {
      width,
      height,
      tzDate: there,
      // All plots end below each other, with or without a scale on the right.
      padding: [8, axes.length > 1 ? 0 : RIGHT, 0, 0],
      cursor: { sync: { key: sync.key, setSeries: false }, drag: { x: true, y: false, setScale: false }, points: { size: 6 } },
      legend: { live: true },
      scales: Object.assign({ x: { range: (u, from, to) => (zoom ? zoom : [data.since, data.until]) } }, scales),
      series: [at, ...series],
      axes: [axis(ink, { values: axisDates, size: 38, space: 70, gap: 6 }), ...axes],
      hooks: Object.assign(
        {
          drawClear: [(u) => backdrop(u, ink, more && more.numbers)],
          setSelect: [
            (u) => {
              // The others follow: what they show is a step longer or shorter.
              if (u !== dragged || u.select.width < 4) return;
              look([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
            },
          ],
        },
        more && more.hooks,
      ),
    };
  }

  function look(range) {
    zoom = range;
    for (const plot of plots) {
      plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
      plot.setScale("x", { min: range ? range[0] : data.since, max: range ? range[1] : data.until });
    }
  }

  // A logarithmic scale from one round number to another, with the round ones between named.
  function round(from, to) {
    const found = [];
    for (let power = -2; power <= 7; power += 1)
      for (const first of [1, 2, 5]) found.push(first * 10 ** power);
    const low = found.findLastIndex((v) => v <= from * 1.02);
    const high = found.findIndex((v) => v >= to * 0.98);
    return found.slice(Math.max(low, 0), high < 0 ? undefined : high + 1);
  }
  const fromRound = (u, low, high) => {
    const within = low > 0 && high > 0 ? round(low, high) : [1, 10];
    return within.length > 1 ? [within[0], within[within.length - 1]] : [within[0] / 2, within[0]];
  };
  const fromZero = (u, low, high) => [0, high > 0 ? high * 1.08 : 1];

  // -- the plots --------------------------------------------------------------------------------

  const draw = {
    load(ink, width, model) {
      const series = [
        line("arrived", ink.blue, "/s", { fill: ink.blue + "22", width: 1.5 }),
        line("busiest second", ink.sky, "/s", { width: 0.75 }),
        line("waited at most", ink.grey, "", hidden),
        line("failed", ink.red, "", hidden),
      ];
      return [
        options(ink, width, 150, series, { y: { range: fromZero } }, [axis(ink)], { numbers: true }),
        [fine, model.rps, model.peak, model.queue, model.failed],
      ];
    },

    variants(ink, width, model) {
      const colour = (i) => ink[VARIANTS[i % VARIANTS.length]];
      const band = (u) => {
        const { ctx, bbox } = u;
        const [first, step] = data.fine;
        ctx.save();
        ctx.beginPath();
        ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
        ctx.clip();
        const low = Math.max(Math.floor((u.scales.x.min - first) / step), 0);
        const high = Math.min(Math.ceil((u.scales.x.max - first) / step), data.fine[2]);
        for (let i = low; i < high; i += 1) {
          const from = Math.round(u.valToPos(first + i * step, "x", true));
          const to = Math.round(u.valToPos(first + (i + 1) * step, "x", true));
          let below = 0;
          model.shares.forEach((column, variant) => {
            const share = column[i];
            if (!share) return;
            ctx.fillStyle = colour(variant);
            const top = u.valToPos(Math.min(below + share, 1), "y", true);
            ctx.fillRect(from, top, Math.max(to - from, 1), u.valToPos(below, "y", true) - top);
            below += share;
          });
        }
        ctx.restore();
      };
      const series = model.variants.map((name, i) =>
        line(name, colour(i), " %", Object.assign({ fill: colour(i), value: shown(" %", 100) }, hidden)),
      );
      return [
        options(
          ink, width, 110, series,
          { y: { range: [0, 1] } },
          [axis(ink, { values: (u, splits) => splits.map((v) => v * 100 + " %"), splits: [0, 0.5, 1] })],
          { hooks: { draw: [band] } },
        ),
        [fine, ...model.shares],
      ];
    },

    latency(ink, width, model) {
      const traced = model.p50.some((value) => value !== null);
      const series = [
        line("objective", ink.ink, " ms", { dash: [6, 4] }),
        line("mean", ink.grey, " ms", traced ? hidden : { width: 1.5 }),
      ];
      const columns = [fine, model.objective, model.mean];
      if (traced) {
        series.push(
          line("p50", ink.sky, " ms"),
          line("p95", ink.blue, " ms"),
          line("p" + model.percentile, ink.red, " ms"),
        );
        columns.push(model.p50, model.p95, model.px);
      }
      return [
        options(ink, width, 180, series, { y: { distr: 3, range: fromRound } }, [
          axis(ink, {
            splits: (u) => round(u.scales.y.min, u.scales.y.max),
            filter: (u, splits) => splits,
            values: (u, splits) => splits.map((v) => +v.toPrecision(3) + ""),
          }),
        ]),
        columns,
      ];
    },

    budget(ink, width, model) {
      const one = coarse.map(() => 1);
      const series = [
        line("as fast as allowed", ink.ink, "x", { dash: [6, 4], value: () => "1x" }),
        line("burn rate", ink.orange, "x", { paths: bars(coarse), fill: ink.orange + "99", width: 0 }),
        line("used", ink.blue, " %", { scale: "used", width: 1.75, value: shown(" %", 100) }),
      ];
      const right = axis(ink, {
        scale: "used", side: 1, grid: { show: false }, size: RIGHT,
        values: (u, splits) => splits.map((v) => Math.round(v * 100) + " %"),
      });
      const left = axis(ink, { values: (u, splits) => splits.map((v) => v + "x") });
      return [
        options(
          ink, width, 140, series,
          { y: { range: (u, low, high) => [0, Math.max(high * 1.08, 1.2)] }, used: { range: fromZero } },
          [left, right],
        ),
        [coarse, one, model.blocks.burn, model.blocks.used],
      ];
    },

    told(ink, width, model) {
      const wanted = coarse.map(() => model.percentile / 100);
      const series = [
        line("told p" + model.percentile, ink.blue, " ms", { paths: steps }),
        line("came p" + model.percentile, ink.red, " ms", { paths: steps }),
        line("within what was told", ink.green, " %", { scale: "kept", value: shown(" %", 100), width: 1 }),
        line("wanted", ink.green, " %", { scale: "kept", value: shown(" %", 100), width: 1, dash: [6, 4] }),
      ];
      const right = axis(ink, {
        scale: "kept", side: 1, grid: { show: false }, size: RIGHT,
        values: (u, splits) => splits.map((v) => +(v * 100).toFixed(1) + " %"),
      });
      // Steps are drawn from where a block begins.
      const begins = coarse.map((seconds) => seconds - data.coarse[1] / 2);
      return [
        options(
          ink, width, 150, series,
          {
            // Shares above, latencies below.
            y: { range: (u, low, high) => [0, high > 0 ? high * 1.5 : 1] },
            kept: { range: (u, low) => [1.002 - 2.5 * (1.002 - Math.min(low ?? 0.9, 0.98)), 1.002] },
          },
          [axis(ink), right],
        ),
        [begins, model.blocks.told, model.blocks.px, model.blocks.kept, wanted],
      ];
    },

    machine(ink, width) {
      const series = [
        line("host", ink.grey, " %"),
        ...data.machine.gpus.map(([gpu], i) =>
          line("GPU " + gpu, ink[VARIANTS[i % VARIANTS.length]], " %", { width: 1.5 }),
        ),
      ];
      return [
        options(ink, width, 130, series, { y: { range: [0, 100] } }, [axis(ink)], { numbers: true }),
        [fine, data.machine.host, ...data.machine.gpus.map(([, busy]) => busy)],
      ];
    },
  };

  function bars() {
    return uPlot.paths.bars({ size: [0.9, Infinity], align: 0 });
  }

  function drawAll() {
    const ink = colours();
    for (const plot of plots) plot.destroy();
    plots = [];
    for (const place of places) {
      place.replaceChildren();
      const model = place.dataset.model === undefined ? null : data.models[place.dataset.model];
      const width = printing ? 680 : Math.max(place.clientWidth, 240);
      const [how, columns] = draw[place.dataset.plot](ink, width, model);
      const plot = new uPlot(how, columns, place);
      plot.over.addEventListener("mousedown", () => { dragged = plot; });
      plot.over.addEventListener("dblclick", () => look(null));
      sync.sub(plot);
      plots.push(plot);
    }
  }

  let waiting = 0;
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;  // a phone's bars come and go
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 120);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { printing = true; drawAll(); });
  addEventListener("afterprint", () => { printing = false; drawAll(); });
  drawAll();
})();
