// node browser.mjs TOOLS CHROMIUM URL PAGE...: opens every page as a reader would and says what is wrong with it.
// TOOLS is a folder with node_modules/playwright-core. The last line is "N passed, N failed".
import { createRequire } from "node:module";
import path from "node:path";

const [tools, executablePath, url, ...pages] = process.argv.slice(2);
const { chromium } = createRequire(path.join(path.resolve(tools), "x.js"))("playwright-core");
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"];
const DESKTOP = { width: 1280, height: 900 }, PHONE = { width: 390, height: 844 };
const browser = await chromium.launch({ executablePath, args, headless: true });
let passed = 0, failed = 0, formulas = 0, filmed = 0, slid = 0, mapped = 0;

async function check(name, look) {
  const problems = [];
  const context = await browser.newContext({ viewport: DESKTOP, colorScheme: "light" });
  const page = await context.newPage();
  page.setDefaultTimeout(60000);
  const stopped = r => r.resourceType() === "media" && r.failure()?.errorText === "net::ERR_ABORTED";      // the browser itself stops loading films
  page.on("requestfailed", r => stopped(r) || problems.push(`request failed: ${r.url().slice(0, 150)} ${r.failure()?.errorText}`));
  page.on("response", r => { if (r.status() >= 400) problems.push(`${r.status()} ${r.url()}`); });
  page.on("request", r => { if (!r.url().startsWith(new URL(url).origin + "/") && !/^(data|blob|about):/.test(r.url())) problems.push(`leaves the site: ${r.url().slice(0, 150)}`); });
  page.on("pageerror", e => problems.push(`page error: ${e.message}`));
  page.on("console", m => { if (m.type() === "error") problems.push(`console: ${m.text().slice(0, 300)}`); });
  try { await look(page, problems); } catch (e) { problems.push(`${e.name}: ${e.message.split("\n")[0]}`); }
  await context.close();
  problems.length ? failed++ : passed++;
  console.log(`${problems.length ? "FAILED" : "passed"} ${name}`);
  for (const p of [...new Set(problems)]) console.log(`    ${p}`);
}

// Open a page and wait until it is still and its maths is drawn (if it never is, `wrong` will say so).
async function open(page, to) {
  await page.goto(to, { waitUntil: "load" });
  await page.waitForLoadState("networkidle");
  await page.waitForFunction(() => [...document.querySelectorAll(".math")].every(m => m.querySelector(".katex, math")), null, { timeout: 15000 }).catch(() => {});
}

// What can be seen to be wrong in a loaded page, as a list of lines.
const wrong = async page => page.evaluate(async () => {
  const out = [], main = document.querySelector("main") || document.body;
  for (const details of document.querySelectorAll("details")) details.open = true;     // a solution's pictures too
  for (const img of document.images) {
    img.loading = "eager";
    try { await img.decode(); } catch { out.push(`broken picture ${img.src.slice(0, 120)}`); }
  }
  for (const bad of document.querySelectorAll(".katex-error")) out.push(`KaTeX: ${bad.title || bad.textContent}`);
  for (const math of document.querySelectorAll(".math"))
    if (!math.querySelector(".katex, math")) out.push(`maths not rendered: ${math.textContent.slice(0, 80)}`);
  const prose = main.cloneNode(true);
  prose.querySelectorAll("pre, code, .katex, script, style, svg").forEach(e => e.remove());
  for (const raw of [/\$\$/, /\\(frac|sqrt|alpha|bar|mathbb|begin)\b/, /^:::/m, /\{#(eq|fig|tbl|sec)-/, /(^|\s)@(eq|fig|tbl|sec)-/, /#\|/])
    if (raw.test(prose.textContent)) out.push(`raw markup shown: ${prose.textContent.match(raw.source.startsWith("^") ? raw : new RegExp(`.{0,40}${raw.source}.{0,40}`))?.[0]}`);
  if (!document.querySelector("h1")?.textContent.trim()) out.push("no title");
  return out;
});

// Films must play, and not only load: time goes on, the picture has a size and is not one flat colour.
const films = async page => page.evaluate(async () => {
  const out = [];
  const wait = (target, event, ms) => new Promise(done => { target.addEventListener(event, () => done(true), { once: true }); setTimeout(() => done(false), ms); });
  for (const video of document.querySelectorAll("video")) {
    const name = (video.currentSrc || video.src).slice(-80);
    video.muted = true; video.preload = "auto"; video.load();
    if (video.readyState < 3) await wait(video, "canplay", 10000);
    try { await video.play(); } catch (e) { out.push(`film ${name} does not play: ${e.message}`); continue; }
    const start = video.currentTime;
    for (let i = 0; i < 100 && video.currentTime < start + .3; i++) await new Promise(r => setTimeout(r, 100));
    video.pause();
    if (video.error) out.push(`film ${name}: ${video.error.message}`);
    if (video.readyState < 2 || !video.videoWidth) out.push(`film ${name}: readyState ${video.readyState}, ${video.videoWidth} pixels wide`);
    if (video.currentTime < start + .3) out.push(`film ${name} stands still at ${video.currentTime} s of ${video.duration} s`);
    const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 }), pen = canvas.getContext("2d");
    pen.drawImage(video, 0, 0, 64, 64);
    const values = pen.getImageData(0, 0, 64, 64).data;
    if (Math.max(...values.filter((_, i) => i % 4 < 3)) - Math.min(...values.filter((_, i) => i % 4 < 3)) < 20) out.push(`film ${name} is blank`);
    if (!video.controls || !video.getAttribute("aria-label")) out.push(`film ${name} has no controls or no name`);
  }
  return out;
});

// Sliders over a sprite: by keys, as a reader without a mouse would, to the last frame; the picture moves to where that frame lies, and its name is shown.
async function sliders(page) {
  const out = [], all = page.locator("figure.zerodiff-slider");
  for (let k = 0; k < await all.count(); k++) {
    const range = all.nth(k).locator("input[type=range]");
    const look = () => all.nth(k).evaluate(f => {
      const window = f.firstElementChild.getBoundingClientRect(), img = f.querySelector("img"), sheet = img.getBoundingClientRect(), range = f.querySelector("input");
      const labels = JSON.parse(range.dataset.labels), c = Math.round(sheet.width / window.width), r = Math.ceil(labels.length / c), i = +range.value;
      return { i, last: labels.length - 1, loaded: img.complete && img.naturalWidth > 0, said: f.querySelector("output").textContent === labels[i] && range.getAttribute("aria-valuetext") === labels[i],
        x: (window.left - sheet.left) / window.width - i % c, y: (window.top - sheet.top) / window.height - Math.floor(i / c), rows: sheet.height / window.height - r, wide: window.right - document.documentElement.clientWidth };
    });
    const wrong = (s, where) => {
      if (!s.loaded) out.push(`slider ${k}: its picture is not there`);
      if (!s.said) out.push(`slider ${k} ${where}: the label is not that of frame ${s.i}`);
      if (Math.max(Math.abs(s.x), Math.abs(s.y), Math.abs(s.rows)) > .02) out.push(`slider ${k} ${where}: frame ${s.i} is not in the window (off by ${s.x.toFixed(2)}, ${s.y.toFixed(2)}; rows ${s.rows.toFixed(2)})`);
      if (s.wide > 1) out.push(`slider ${k} ${where}: wider than the screen`);
    };
    await range.scrollIntoViewIfNeeded();
    wrong(await look(), "at first");
    await range.focus();
    await page.keyboard.press("End");
    const end = await look();
    wrong(end, "at its end");
    if (end.i !== end.last) out.push(`slider ${k}: the End key goes to ${end.i} of ${end.last}`);
    await page.keyboard.press("Home");
    await page.keyboard.press("ArrowRight");
    const second = await look();
    wrong(second, "at its second frame");
    if (end.last && second.i !== 1) out.push(`slider ${k}: Home and an arrow go to ${second.i}`);
  }
  return out;
}

// Maps in a frame, as `save_map` writes them: by mouse, wheel, keys and menus. The flower under the pointer is named, and stays there when zoomed.
async function maps(page) {
  const out = [], frames = page.locator("iframe.zerodiff-map");
  for (let k = 0; k < await frames.count(); k++) {
    await frames.nth(k).scrollIntoViewIfNeeded();
    const frame = await (await frames.nth(k).elementHandle()).contentFrame();
    await frame.waitForFunction(() => document.documentElement.dataset.theme && document.getElementById("sprite").naturalWidth);
    const expect = (fine, said) => fine || out.push(`map ${k}: ${said}`);
    const look = (i = 0) => frame.evaluate(i => ({ n, zoom, cx, cy, at: where(i), width, height, said: $("card").hidden ? null : $("name").textContent, name: data.names[data.of[i]], big: innerWidth,
      wide: document.documentElement.scrollWidth, planes: data.views.length, sentences: data.sentences.length, colours: new Set(pen.getImageData(0, 0, map.width, map.height).data).size }), i);
    const box = await frame.locator("#map").boundingBox(), first = await look(), i = first.n >> 1;
    const [x, y] = (await look(i)).at, dot = () => frame.evaluate(() => new Set($("large").getContext("2d").getImageData(0, 0, 304, 304).data).size);
    expect(first.n > 1 && first.colours > 50, `${first.n} flowers, and a sheet of ${first.colours} values`);
    expect(first.wide <= first.big + 1, "wider than its frame");
    await page.mouse.move(box.x + x, box.y + y);
    const over = await look(i);
    expect(over.said === over.name, `the pointer is on ${over.name}, and the card says ${over.said}`);
    expect(await dot() > 20, "the card's picture is blank");
    await page.mouse.wheel(0, -400);
    await frame.waitForFunction(() => zoom > 1, null, { timeout: 5000 }).catch(() => {});
    const near = await look(i);
    expect(near.zoom > 1.5, `the wheel zooms to ${near.zoom}`);
    expect(Math.hypot(near.at[0] - x, near.at[1] - y) < 1.5, "zooming moves what is under the pointer");
    await page.mouse.down(); await page.mouse.move(box.x + x + 20, box.y + y - 30, { steps: 4 }); await page.mouse.up();
    const dragged = await look(i);
    expect(Math.hypot(dragged.at[0] - x - 20, dragged.at[1] - y + 30) < 8, `dragged by (20, -30), it went to (${dragged.at.map((v, j) => (v - [x, y][j]).toFixed(0))})`);
    await frame.locator("#map").focus();
    for (const key of ["0", "+", "ArrowRight"]) await page.keyboard.press(key);
    const keyed = await look();
    expect(Math.abs(keyed.zoom - 1.4) < .01 && keyed.cx > .5, `by keys: zoom ${keyed.zoom}, middle ${keyed.cx.toFixed(2)}`);
    await frame.locator("#in").click();
    expect((await look()).zoom > 1.9, "the button does not zoom");
    if (first.sentences) {
      await frame.locator("#go").selectOption({ index: 1 });
      const gone = await look(first.n);
      expect(Math.hypot(gone.at[0] - gone.width / 2, gone.at[1] - gone.height / 2) < 1.5, "the menu does not go to its sentence");
    }
    if (first.planes > 1) {
      await frame.locator("#view").selectOption({ index: 1 });
      await frame.waitForFunction(() => places.every((v, j) => Math.abs(v - data.views[1].places[j]) < 1e-9), null, { timeout: 5000 }).catch(() => out.push(`map ${k}: the other plane is not reached`));
      await frame.locator("#view").selectOption({ index: 0 });
    }
    await frame.locator("#all").click();
  }
  return out;
}

// Least contrast of the page's text with its background (WCAG ratio), and how bright the background is.
const contrast = async page => page.evaluate(() => {
  const rgba = s => { const v = (s.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number); return [v[0], v[1], v[2], (v[3] ?? 1) * 255]; };
  const luminance = c => { const f = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]); };
  const background = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 127) return c; } return [255, 255, 255, 255]; };
  let least = 99, where = "";
  for (const e of document.querySelectorAll("main p, main li, main h2, main pre code, main pre code span")) {
    if (!e.textContent.trim() || !e.offsetParent) continue;
    const [a, b] = [luminance(rgba(getComputedStyle(e).color)), luminance(background(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < least) { least = ratio; where = `${e.tagName.toLowerCase()}.${e.className} ${e.textContent.trim().slice(0, 40)}`; }
  }
  return { least, where, page: luminance(background(document.body)) };
});

// What reaches past the screen's edge without a scrolling box of its own: the page would scroll, or cut it off.
const scrollsSideways = async page => page.evaluate(() => {
  const wide = document.documentElement.clientWidth, over = document.scrollingElement.scrollWidth;
  const boxed = e => { for (let p = e.parentElement; p && p.id !== "quarto-content" && p !== document.body; p = p.parentElement) if (/auto|scroll|hidden/.test(getComputedStyle(p).overflowX)) return true; };
  const guilty = [...document.querySelectorAll("main *")].filter(e => e.getClientRects().length && e.getBoundingClientRect().right > wide + 1 && !boxed(e));
  if (over <= wide && !guilty.length) return null;
  return `wider than a screen of ${wide} px (${over}): ${guilty.slice(0, 3).map(e => `${e.tagName.toLowerCase()}.${e.className} ${e.textContent.trim().slice(0, 40)}`).join("; ")}`;
});

const darkSwitch = ".quarto-color-scheme-toggle, .sd-color-toggle, [class*='color-scheme-toggle']";

for (const name of pages) await check(name, async (page, problems) => {
  await open(page, url + name);
  problems.push(...await wrong(page), ...await films(page), ...await sliders(page), ...await maps(page));
  mapped += await page.locator("iframe.zerodiff-map").count();
  filmed += await page.locator("video").count(); slid += await page.locator("figure.zerodiff-slider").count();
  formulas += await page.locator(".katex").count();
  const light = await contrast(page);
  if (light.page < .5) problems.push(`light mode is dark (luminance ${light.page.toFixed(2)})`);
  await page.locator(darkSwitch).filter({ visible: true }).first().click();
  await page.waitForTimeout(250);
  const dark = await contrast(page);
  if (dark.page > .2) problems.push(`dark mode is not dark (luminance ${dark.page.toFixed(2)})`);
  for (const box of await page.locator("iframe.zerodiff-map").elementHandles())
    await (await box.contentFrame()).waitForFunction(() => document.documentElement.dataset.theme === "dark", null, { timeout: 5000 }).catch(() => problems.push("the map does not turn dark with its page"));
  for (const [mode, c] of [["light", light], ["dark", dark]])
    if (c.least < 3) problems.push(`${mode} mode: contrast ${c.least.toFixed(2)} at ${c.where}`);
  await page.reload({ waitUntil: "networkidle" });
  if ((await contrast(page)).page > .2) problems.push("dark mode is forgotten on reload");
  await page.setViewportSize(PHONE);
  await page.waitForTimeout(200);
  const sideways = await scrollsSideways(page);
  if (sideways) problems.push(sideways);
  problems.push(...[...await sliders(page), ...await maps(page)].map(p => `on a phone: ${p}`));
});

await check("search finds add_noise", async (page, problems) => {
  await open(page, url);
  await page.locator(".smalldocs-search input").filter({ visible: true }).first().fill("add_noise");
  const hits = page.locator(".search-result");
  await hits.first().waitFor();
  const texts = await hits.allTextContents();
  if (!texts.some(t => t.includes("add_noise"))) problems.push(`no hit names it: ${texts[0]}`);
  await hits.first().click();
  await page.waitForLoadState("networkidle");
  if (!(await page.locator("main").textContent()).includes("add_noise")) problems.push(`${page.url()} does not mention it`);
});

await check(`${formulas} formulas shown`, async (page, problems) => { if (!formulas) problems.push("maths is rendered nowhere"); });

await check(`${filmed} films played, ${slid} sliders moved, ${mapped} maps explored`, async (page, problems) => { if (!filmed || !slid || !mapped) problems.push("no film, no slider or no map on any page"); });

await browser.close();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed || !passed ? 1 : 0);
